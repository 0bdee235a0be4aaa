package devpg

import (
	"context"
	"errors"
	"io"
)

// This file is for tests alone: a server that goes away and returns, and a primary with a standby.

// Halt stops the server until Resume: cleanly in the mode "fast", as in a crash in the mode "immediate".
// It does not wait.
func (p *Server) Halt(mode string) error {
	_, err := io.WriteString(p.orders, "stop "+mode+"\n")
	return err
}

// Resume starts the server again, at the same URL and with the same data.
func (p *Server) Resume(ctx context.Context) error {
	if _, err := io.WriteString(p.orders, "start\n"); err != nil {
		return err
	}
	return p.awaitConnection(ctx)
}

// FindPrograms returns the first directory with all of the named PostgreSQL programs, or "".
func FindPrograms(names ...string) string { return firstWith(names, postgresDirs()) }

// StartPair starts a primary and its synchronous standby from the programs in bin, pg_basebackup among them. Both
// are durable, and their data are removed at the end. If it fails, neither is left running.
func StartPair(ctx context.Context, bin string) (primary, standby *Server, err error) {
	primary, err = start(ctx, bin, "", []string{"synchronous_commit=on", "synchronous_standby_names=standby"})
	if err != nil {
		return nil, nil, err
	}
	standby, err = start(ctx, bin, "", []string{"synchronous_commit=on", "cluster_name=standby"}, "PRIMARY="+primary.URL)
	if err != nil {
		return nil, nil, errors.Join(err, primary.Stop())
	}
	return primary, standby, nil
}
