#!/usr/bin/env bash
# Manage a reranker service that runs in the background, or its replicas in containers.
#
#   ./manage_reranker.sh start|stop|restart|status|tail|logs|health|metrics|rolling-restart
#
#   start     start in the background and wait until it is ready
#   stop      finish accepted requests, then stop
#   restart   check the settings, stop, then start
#   status    print whether it runs, and its health; exit status 0 only when it is ready
#   tail      follow the log
#   logs      print the last 100 lines of the log
#   health    print /health
#   metrics   print /metrics as JSON
#
#   rolling-restart   replace each replica behind nginx or HAProxy (docker-compose) by one with the current image and
#                     settings, one at a time, without losing requests
#
# Settings for the new process go before the command: RERANKER_MAX_PARALLEL=8 ./manage_reranker.sh restart
set -euo pipefail
cd "$(dirname "$0")"
source scripts/process.sh

# The API key is passed on standard input: command line arguments are visible to all users of the machine.
get() {
  printf %s "${RERANKER_API_KEY:+Authorization: Bearer $RERANKER_API_KEY}" |
    local_curl --show-error --max-time 5 --header @- "$@" || { echo "No successful response from $url" >&2; return 1; }
}

# Print the JSON of a path, also for error responses.
show() {
  local answer status=0
  answer=$(get --fail-with-body "$url$1") || status=$?
  [[ -z $answer ]] || .venv/bin/python -m json.tool <<<"$answer"
  return "$status"
}

stop() {
  if ! running; then
    rm -f "$pid_file"
    echo "Not running."
    return
  fi
  # The service may take its whole shutdown timeout, then send the last responses.
  local deadline=$((SECONDS + $(LC_ALL=C printf %.0f "$shutdown_timeout") + 15))
  kill -TERM "$pid"
  while alive "$pid"; do
    if ((SECONDS > deadline)); then
      echo "Still running after its shutdown timeout; killing it." >&2
      kill -KILL "$pid"
      break
    fi
    sleep 0.1
  done
  rm -f "$pid_file"
  echo "Stopped."
}

status() {
  if ! running; then
    echo "Not running."
    return 3
  fi
  echo "Running with pid $pid on $url"
  show /health
}

# Check first: with invalid settings, the running service is left alone.
restart() {
  .venv/bin/python -m app --check
  stop
  ./start_reranker.sh daemon
}

show_log() {
  [[ -f $log_file ]] || { echo "$log_file does not exist yet." >&2; return 1; }
  "$@" "$log_file"
}

compose() {
  if docker compose version >/dev/null 2>&1; then docker compose "$@"; else docker-compose "$@"; fi
}

# Fails if the replica exits, is restarted or becomes unhealthy. Loading the model may take any time.
wait_for_replica() {
  local state=
  until [[ $state == running\ 0\ healthy ]]; do
    state=$(docker inspect --format '{{.State.Status}} {{.RestartCount}} {{.State.Health.Status}}' "$1")
    if [[ $state =~ ^(exited|dead)|\ [1-9]|unhealthy$ ]]; then
      docker logs --tail 20 "$1" >&2
      echo "The new replica ${1:0:12} did not become ready ($state)." >&2
      return 1
    fi
    sleep 1
  done
}

# Stop nginx from sending requests to these addresses. It reads the file every two seconds. HAProxy needs no notice: a
# replica that stops is not ready, and what it rejects is sent to another one.
leave() {
  [[ -n $(compose --profile scale ps -q proxy) ]] || return 0
  compose exec -T proxy sh -c 'printf "%s\n" "$@" >/tmp/reranker/leaving' sh "$@"
}

# Also after a failure: remove a new replica that is not ready, and let the proxy use all others again.
new=
end_rolling_restart() {
  [[ -z $new ]] || docker rm --force "$new" >/dev/null || true
  leave none || true
}

rolling_restart() {
  local old id number=0 before
  docker info >/dev/null 2>&1 || { echo "Docker is not running." >&2; return 1; }
  mapfile -t old < <(compose ps -q replica)
  if ((${#old[@]} == 0)); then
    echo "No replicas are running. Start them: docker-compose --profile scale up -d --scale replica=3 proxy" >&2
    return 1
  fi
  compose --profile scale run --rm --no-deps -T replica python -m app --check
  trap end_rolling_restart EXIT
  for id in "${old[@]}"; do
    echo "Replica $((++number)) of ${#old[@]}: starting a new one ..."
    before=$(compose ps -q replica)
    compose --profile scale up -d --no-deps --no-recreate --scale "replica=$((${#old[@]} + 1))" replica
    new=$(compose ps -q replica | grep -vxF "$before") || { echo "docker-compose did not start a new replica." >&2; return 1; }
    wait_for_replica "$new"
    new=
    echo "Replica $number of ${#old[@]}: stopping ${id:0:12} ..."
    leave "$(docker inspect --format '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}' "$id"):8000"
    sleep 5
    docker stop "$id" >/dev/null
    docker rm "$id" >/dev/null
  done
}

[[ $# -eq 1 ]] || { usage >&2; exit 2; }
case $1 in
  status | health | metrics) running || true ;; # sets url
esac
case $1 in
  start) ./start_reranker.sh daemon ;;
  stop) stop ;;
  restart) restart ;;
  status) status ;;
  tail) show_log tail -n 20 -f ;;
  logs) show_log tail -n 100 ;;
  health) show /health ;;
  rolling-restart) rolling_restart ;;
  metrics) show "/metrics?format=json" ;;
  *) usage >&2; exit 2 ;;
esac
