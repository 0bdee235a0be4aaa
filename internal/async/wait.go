package async

import (
	"context"
	"time"
)

// Sleep waits and reports whether it was not interrupted.
func Sleep(ctx context.Context, wait time.Duration) bool {
	select {
	case <-time.After(wait):
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

// Interruptible runs something that may block for ever. When the context ends it returns without waiting for
// the end, which comes with that of the program.
func Interruptible(ctx context.Context, run func() error) error {
	done := make(chan error, 1)
	go func() { done <- run() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}
