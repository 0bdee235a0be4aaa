package devpg

var (
	FindPostgres = findPostgres
	PostgresDirs = postgresDirs
)
