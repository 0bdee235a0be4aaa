package devpg

import (
	"context"
	"errors"
	"io"
	"strings"
)

// This file is what tests need beside a server that runs: one that goes away and returns, and a
// primary with a standby.

// Halt ends the server until Resume: mode "fast" in good order, "immediate" like a crash. It does
// not wait for the end.
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

// FindPrograms returns the directory that has all of PostgreSQL's programs with the names, or "".
func FindPrograms(names ...string) string { return firstWith(names, postgresDirs()) }

// PairPrograms are the programs that StartPair needs.
var PairPrograms = append([]string{"pg_basebackup"}, serverPrograms...)

// StartPair starts a primary and a standby for which its commits wait. Both are durable, and their
// data are removed in the end. With an error it has started neither.
func StartPair(ctx context.Context) (primary, standby *Server, err error) {
	bin := FindPrograms(PairPrograms...)
	if bin == "" {
		return nil, nil, errors.New("no directory has " + strings.Join(PairPrograms, ", "))
	}
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
