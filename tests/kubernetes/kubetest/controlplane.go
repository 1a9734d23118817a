package main

import (
	"context"
	"net"
	"net/url"

	"github.com/spf13/pflag"
	"go.etcd.io/etcd/server/v3/embed"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	cliflag "k8s.io/component-base/cli/flag"
	_ "k8s.io/component-base/logs/json/register"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	apiserveroptions "k8s.io/kubernetes/cmd/kube-apiserver/app/options"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	controllermanageroptions "k8s.io/kubernetes/cmd/kube-controller-manager/app/options"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	scheduleroptions "k8s.io/kubernetes/cmd/kube-scheduler/app/options"
)

// startEtcd returns the address at which etcd answers.
func startEtcd(state directory) (string, error) {
	free, err := net.Listen("tcp", "127.0.0.1:0") // its JSON gateway has to be told a port
	if err != nil {
		return "", err
	}
	address := url.URL{Scheme: "http", Host: free.Addr().String()}
	if err := free.Close(); err != nil {
		return "", err
	}
	config := embed.NewConfig()
	config.Dir = state.file("etcd")
	config.UnsafeNoFsync = true // nothing here has to survive a power failure
	config.LogLevel = "error"
	config.QuotaBackendBytes = 8 << 30
	config.ListenClientUrls = []url.URL{address}
	config.AdvertiseClientUrls = config.ListenClientUrls
	config.ListenPeerUrls = []url.URL{{Scheme: "http", Host: "127.0.0.1:0"}}
	etcd, err := embed.StartEtcd(config)
	if err != nil {
		return "", err
	}
	<-etcd.Server.ReadyNotify()
	return address.String(), nil
}

func parseFlags(name string, sets cliflag.NamedFlagSets, arguments ...string) error {
	flags := pflag.NewFlagSet(name, pflag.ContinueOnError)
	for _, set := range sets.FlagSets {
		flags.AddFlagSet(set)
	}
	return flags.Parse(arguments)
}

func runAPIServer(ctx context.Context, s settings, listener net.Listener, etcd string) error {
	options := apiserveroptions.NewServerRunOptions()
	arguments := append([]string{
		"--etcd-servers=" + etcd,
		"--bind-address=127.0.0.1",
		"--advertise-address=127.0.0.1",
		"--endpoint-reconciler-type=none", // the address of a Service may not be a loopback one
		"--tls-cert-file=" + s.state.file("server.crt"),
		"--tls-private-key-file=" + s.state.file("server.key"),
		"--client-ca-file=" + s.state.file("ca.crt"),
		"--token-auth-file=" + s.state.file("tokens.csv"),
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file=" + s.state.file("tokens.key"),
		"--service-account-signing-key-file=" + s.state.file("tokens.key"),
		"--service-cluster-ip-range=10.96.0.0/16",
		"--authorization-mode=Node,RBAC",
		"--allow-privileged=true",
		"--disable-admission-plugins=TaintNodesByCondition", // it taints new nodes, and nobody takes that back
	}, s.apiServer...)
	if err := parseFlags("kube-apiserver", options.Flags(), arguments...); err != nil {
		return err
	}
	options.SecureServing.Listener = listener
	options.SecureServing.BindPort = listener.Addr().(*net.TCPAddr).Port
	if err := options.GenericServerRunOptions.ComponentGlobalsRegistry.Set(); err != nil {
		return err
	}
	completed, err := options.Complete(ctx)
	if err != nil {
		return err
	}
	if err := utilerrors.NewAggregate(completed.Validate()); err != nil {
		return err
	}
	return apiserver.Run(ctx, completed)
}

func runControllerManager(ctx context.Context, s settings) error {
	options, err := controllermanageroptions.NewKubeControllerManagerOptions()
	if err != nil {
		return err
	}
	all := controllermanager.KnownControllers()
	disabled, aliases := controllermanager.ControllersDisabledByDefault(), controllermanager.ControllerAliases()
	flags := options.Flags(all, disabled, aliases)
	options.ParsedFlags = &flags
	arguments := append([]string{
		"--kubeconfig=" + s.state.file("kubeconfig"),
		"--service-account-private-key-file=" + s.state.file("tokens.key"),
		"--root-ca-file=" + s.state.file("ca.crt"),
		"--leader-elect=false",
		"--secure-port=0",
		"--kube-api-qps=1000",
		"--kube-api-burst=1000",
		// No kubelet sends heartbeats: nodes must not be tainted for it, nor their pods be evicted.
		"--controllers=*,-node-lifecycle-controller,-taint-eviction-controller",
	}, s.controllerManager...)
	if err := parseFlags("kube-controller-manager", flags, arguments...); err != nil {
		return err
	}
	config, err := options.Config(ctx, all, disabled, aliases)
	if err != nil {
		return err
	}
	return controllermanager.Run(ctx, config.Complete())
}

func runScheduler(ctx context.Context, s settings) error {
	options := scheduleroptions.NewOptions()
	arguments := []string{"--kubeconfig=" + s.state.file("kubeconfig"), "--leader-elect=false", "--secure-port=0"}
	if err := parseFlags("kube-scheduler", *options.Flags, arguments...); err != nil {
		return err
	}
	config, built, err := scheduler.Setup(ctx, options)
	if err != nil {
		return err
	}
	return scheduler.Run(ctx, config, built)
}
