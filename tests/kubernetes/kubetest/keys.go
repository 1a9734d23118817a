package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"
)

// directory holds everything that one control plane leaves behind.
type directory string

func (d directory) file(name string) string { return filepath.Join(string(d), name) }

// prepare makes the directory and its keys, unless an earlier start has.
func (d directory) prepare() error {
	if d == "" {
		return errors.New("--dir: say where state may be kept")
	}
	if err := os.MkdirAll(string(d), 0o700); err != nil {
		return err
	}
	if _, err := os.Stat(d.file("tokens.csv")); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	authority, err := d.issue("ca", nil, &x509.Certificate{
		Subject: pkix.Name{CommonName: "kubetest"}, IsCA: true, KeyUsage: x509.KeyUsageCertSign,
	})
	if err != nil {
		return err
	}
	for name, certificate := range map[string]*x509.Certificate{
		"server": {
			Subject:     pkix.Name{CommonName: "kube-apiserver"},
			IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv4(10, 96, 0, 1)},
			DNSNames:    []string{"localhost", "kubernetes.default.svc"},
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		},
		"admin": {
			Subject:     pkix.Name{CommonName: "admin", Organization: []string{"system:masters"}},
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		},
		"tokens": {Subject: pkix.Name{CommonName: "service-accounts"}},
	} {
		if _, err := d.issue(name, authority, certificate); err != nil {
			return err
		}
	}
	return os.WriteFile(d.file("tokens.csv"), []byte(rand.Text()+",admin,admin,system:masters\n"), 0o600)
}

type pair struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

// issue writes a key and its certificate, signed by the authority or, without one, by itself.
func (d directory) issue(name string, authority *pair, template *x509.Certificate) (*pair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	if template.SerialNumber, err = rand.Int(rand.Reader, big.NewInt(1<<62)); err != nil {
		return nil, err
	}
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().AddDate(1, 0, 0)
	template.KeyUsage |= x509.KeyUsageDigitalSignature
	template.BasicConstraintsValid = true
	if authority == nil {
		authority = &pair{template, key}
	}
	signed, err := x509.CreateCertificate(rand.Reader, template, authority.certificate, key.Public(), authority.key)
	if err != nil {
		return nil, err
	}
	private, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, err
	}
	certificate, err := x509.ParseCertificate(signed)
	if err != nil {
		return nil, err
	}
	return &pair{certificate, key}, errors.Join(
		os.WriteFile(d.file(name+".crt"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: signed}), 0o600),
		os.WriteFile(d.file(name+".key"), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: private}), 0o600),
	)
}

// writeKubeconfig offers two contexts: kubetest, with a token, and certificate, with a client certificate.
func (d directory) writeKubeconfig(server string) error {
	read := map[string][]byte{}
	for _, name := range []string{"ca.crt", "admin.crt", "admin.key", "tokens.csv"} {
		content, err := os.ReadFile(d.file(name))
		if err != nil {
			return err
		}
		read[name] = content
	}
	token, _, _ := strings.Cut(string(read["tokens.csv"]), ",")
	config := api.NewConfig()
	config.Clusters["kubetest"] = &api.Cluster{Server: server, CertificateAuthorityData: read["ca.crt"]}
	config.AuthInfos["token"] = &api.AuthInfo{Token: token}
	config.AuthInfos["certificate"] = &api.AuthInfo{ClientCertificateData: read["admin.crt"], ClientKeyData: read["admin.key"]}
	config.Contexts["kubetest"] = &api.Context{Cluster: "kubetest", AuthInfo: "token"}
	config.Contexts["certificate"] = &api.Context{Cluster: "kubetest", AuthInfo: "certificate"}
	config.CurrentContext = "kubetest"
	return clientcmd.WriteToFile(*config, d.file("kubeconfig"))
}
