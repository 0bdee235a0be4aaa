package devpg

import "context"

var (
	FindPostgres = findPostgres
	PostgresDirs = postgresDirs
)

// StartContainer starts a server in Docker, even if PostgreSQL's programs are installed.
func StartContainer(ctx context.Context, dir string) (*Server, error) {
	return start(ctx, "", dir, nil)
}
