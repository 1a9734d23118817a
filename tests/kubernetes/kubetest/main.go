// Command kubetest is a Kubernetes control plane in one process on 127.0.0.1, for tests: etcd, kube-apiserver,
// kube-controller-manager and, where asked for, kube-scheduler. Under the name kubectl it is kubectl.
//
// It keeps its state in one directory, writes a kubeconfig there, prints one line of JSON when pods can be created, and
// ends on SIGTERM, SIGINT or when its standard input closes. There is no kubelet: something has to play the node.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/pflag"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apiextensions "k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/component-base/cli"
	kubectl "k8s.io/kubectl/pkg/cmd"
	"sigs.k8s.io/yaml"
)

const patience = 3 * time.Minute // a busy machine of two cores boots in well under one

// settings are what the command line says.
type settings struct {
	state             directory
	port              int
	crds              []string
	apiServer         []string
	controllerManager []string
	scheduler         bool
	untilStdinCloses  bool
}

func main() {
	if filepath.Base(os.Args[0]) == "kubectl" {
		cli.RunNoErrOutput(kubectl.NewDefaultKubectlCommand())
		return
	}
	if err := run(parse()); err != nil {
		fmt.Fprintln(os.Stderr, "kubetest:", err)
		os.Exit(1)
	}
}

func parse() settings {
	var s settings
	pflag.StringVar((*string)(&s.state), "dir", "", "where state, certificates and the kubeconfig are kept")
	pflag.IntVar(&s.port, "port", 0, "port of the API server on 127.0.0.1; 0: any free one")
	pflag.StringArrayVar(&s.crds, "crds", nil, "a file of CustomResourceDefinitions that are there before any controller starts (repeatable)")
	pflag.StringArrayVar(&s.apiServer, "apiserver", nil, "one more flag of kube-apiserver (repeatable)")
	pflag.StringArrayVar(&s.controllerManager, "controller-manager", nil, "one more flag of kube-controller-manager (repeatable)")
	pflag.BoolVar(&s.scheduler, "scheduler", false, "run kube-scheduler as well")
	pflag.BoolVar(&s.untilStdinCloses, "stdin", false, "end when standard input closes, so that no parent leaves it behind")
	pflag.Parse()
	return s
}

func run(s settings) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if s.untilStdinCloses {
		go func() {
			_, _ = io.Copy(io.Discard, os.Stdin)
			stop()
		}()
	}
	began := time.Now()
	rest.SetDefaultWarningHandler(rest.NoWarnings{})
	failed := make(chan error, 3)

	if err := s.state.prepare(); err != nil {
		return err
	}
	etcd, err := startEtcd(s.state)
	if err != nil {
		return fmt.Errorf("etcd: %w", err)
	}
	listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", s.port))
	if err != nil {
		return err
	}
	server := "https://" + listener.Addr().String()
	if err := s.state.writeKubeconfig(server); err != nil {
		return err
	}
	go func() { failed <- runAPIServer(ctx, s, listener, etcd) }()

	config, err := clientcmd.BuildConfigFromFlags("", s.state.file("kubeconfig"))
	if err != nil {
		return err
	}
	config.QPS = -1
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	if err := until(ctx, failed, "the API server is ready", func() bool {
		_, err := client.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
		return err == nil
	}); err != nil {
		return err
	}
	// The garbage collector looks for new kinds twice a minute. It should not have to.
	if err := install(ctx, failed, config, s.crds); err != nil {
		return err
	}
	go func() { failed <- runControllerManager(ctx, s) }()
	if s.scheduler {
		go func() { failed <- runScheduler(ctx, s) }()
	}
	if err := until(ctx, failed, "pods can be created", func() bool {
		_, account := client.CoreV1().ServiceAccounts("default").Get(ctx, "default", metav1.GetOptions{})
		_, root := client.CoreV1().ConfigMaps("default").Get(ctx, "kube-root-ca.crt", metav1.GetOptions{})
		return account == nil && root == nil
	}); err != nil {
		return err
	}
	if err := json.NewEncoder(os.Stdout).Encode(map[string]any{
		"server": server, "kubeconfig": s.state.file("kubeconfig"), "etcd": etcd, "seconds": time.Since(began).Seconds(),
	}); err != nil {
		return err
	}
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
		os.Exit(0) // what etcd has on disk is enough for the next start
	}
	return nil
}

func until(ctx context.Context, failed <-chan error, what string, holds func() bool) error {
	deadline := time.After(patience)
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for !holds() {
		select {
		case <-again.C:
		case err := <-failed:
			return err
		case <-ctx.Done():
			return ctx.Err()
		case <-deadline:
			return fmt.Errorf("waited %s in vain until %s", patience, what)
		}
	}
	return nil
}

// install creates the CustomResourceDefinitions of the files and waits until their kinds are served.
func install(ctx context.Context, failed <-chan error, config *rest.Config, files []string) error {
	client, err := apiextensions.NewForConfig(config)
	if err != nil {
		return err
	}
	definitions := client.ApiextensionsV1().CustomResourceDefinitions()
	for _, path := range files {
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, document := range strings.Split(string(text), "\n---") {
			var crd apiextensionsv1.CustomResourceDefinition
			if err := yaml.Unmarshal([]byte(document), &crd); err != nil {
				return fmt.Errorf("%s: %w", path, err)
			}
			if crd.Name == "" {
				continue
			}
			if _, err := definitions.Create(ctx, &crd, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
				return fmt.Errorf("%s: %w", path, err)
			}
			if err := until(ctx, failed, crd.Name+" is served", func() bool { return served(ctx, client, crd.Name) }); err != nil {
				return errors.Join(fmt.Errorf("%s", path), err)
			}
		}
	}
	return nil
}

func served(ctx context.Context, client apiextensions.Interface, name string) bool {
	crd, err := client.ApiextensionsV1().CustomResourceDefinitions().Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return false
	}
	for _, condition := range crd.Status.Conditions {
		if condition.Type == apiextensionsv1.Established && condition.Status == apiextensionsv1.ConditionTrue {
			_, err := client.Discovery().ServerResourcesForGroupVersion(crd.Spec.Group + "/" + crd.Spec.Versions[0].Name)
			return err == nil
		}
	}
	return false
}
