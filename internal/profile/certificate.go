package profile

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"

	"github.com/dtcp-relay/dtcp"
)

// Certificate returns the certificate of this installation, by whose
// fingerprint peers know it. It is made when it is first asked for, and kept:
// of several processes that ask at once, all get the same.
func (d *Dir) Certificate() (tls.Certificate, error) {
	c, err := d.readCertificate()
	if !errors.Is(err, fs.ErrNotExist) {
		return c, err
	}
	err = d.change(func() error {
		c, err = d.readCertificate()
		if !errors.Is(err, fs.ErrNotExist) {
			return err // somebody was quicker
		}
		if c, err = dtcp.NewCertificate(); err != nil {
			return err
		}
		content, err := encodeCertificate(c)
		if err != nil {
			return err
		}
		return d.write(certificateFile, content)
	})
	if err != nil {
		return tls.Certificate{}, err
	}
	return c, nil
}

func (d *Dir) readCertificate() (tls.Certificate, error) {
	content, err := d.read(certificateFile)
	if err != nil {
		return tls.Certificate{}, err
	}
	c, err := tls.X509KeyPair(content, content)
	if err != nil {
		return tls.Certificate{}, d.damaged(certificateFile, err)
	}
	return c, nil
}

func encodeCertificate(c tls.Certificate) ([]byte, error) {
	key, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		return nil, fmt.Errorf("profile: %w", err)
	}
	var b bytes.Buffer
	for _, der := range c.Certificate {
		if err := pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: der}); err != nil {
			return nil, fmt.Errorf("profile: %w", err)
		}
	}
	if err := pem.Encode(&b, &pem.Block{Type: "PRIVATE KEY", Bytes: key}); err != nil {
		return nil, fmt.Errorf("profile: %w", err)
	}
	return b.Bytes(), nil
}
