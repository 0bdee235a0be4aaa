# Runs a PostgreSQL server until the standard input ends. The first argument is the kind of server, the others are
# directories to remove at the end. Each line of the input is a command: the tests send "stop immediate" and
# "start" for a database that goes away and returns.

case $1 in
local)
	started=
	# The directory data appears only when complete. A server that was not started here is left running.
	start() {
		if ! [ -d data ]; then
			rm -rf new
			if [ -n "$PRIMARY" ]; then
				"$BIN/pg_basebackup" -d "$PRIMARY" -D new -R -c fast
			else
				"$BIN/initdb" -D new -U postgres --auth=trust -E UTF8 --no-locale --no-sync >/dev/null
			fi && mv new data || return
		fi
		"$BIN/pg_ctl" start -s -t 600 -D data -o "$OPTIONS" && started=yes
	}
	stop() {
		[ -z "$started" ] || "$BIN/pg_ctl" stop -s -D data -m "$1" && started=
	}
	end() { stop fast; }
	;;
docker)
	start() {
		docker start "$NAME" 2>/dev/null ||
			docker run -d --name "$NAME" -p "$ADDRESS:5432" $VOLUME -e POSTGRES_PASSWORD "$IMAGE" $OPTIONS ||
			{ end; return 1; }
	}
	stop() { if [ "$1" = fast ]; then docker stop "$NAME"; else docker kill "$NAME"; fi; }
	end() { docker logs --tail 5 "$NAME"; docker rm -f -v "$NAME"; }
	;;
esac
shift

rm -f log
{ start && { while read -r order && $order; do :; done; end; }; } >log 2>&1
status=$?
[ $status = 0 ] || tail -n 8 log
cd / && rm -rf "$@"
exit $status
