#!/usr/bin/env bash
# Manage a reranker service that runs in the background, or its replicas in containers.
#
#   ./manage_reranker.sh start|stop|restart|status|tail|logs|health|metrics|rolling-restart
#
#   start     start in the background and wait until it is ready
#   stop      finish the requests in work, then stop
#   restart   stop, then start
#   status    whether it runs, and what; exit status 0 only when it is ready
#   tail      follow the log
#   logs      print the last 100 lines of the log
#   health    print /health
#   metrics   print the figures of /metrics
#
#   rolling-restart   put a new replica, with today's image and settings, in the place of each that runs behind the
#                     proxy (docker-compose --profile scale); one after the other, so that no request is lost
#
# Settings given in front reach the new process: RERANKER_MAX_PARALLEL=8 ./manage_reranker.sh restart
set -euo pipefail
cd "$(dirname "$0")"
source scripts/process.sh

# With the key, where there is one; on standard input, since all users of a machine see its arguments.
get() {
  printf %s "${RERANKER_API_KEY:+Authorization: Bearer $RERANKER_API_KEY}" |
    local_curl --show-error --max-time 5 --header @- "$@" || { echo "No good answer from $url" >&2; return 1; }
}

# JSON of a path with line breaks, also where it tells of an error.
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
  # Longer than the service itself may take: its shutdown timeout and the last answers.
  local deadline=$((SECONDS + $(LC_ALL=C printf %.0f "$shutdown_timeout") + 15))
  kill -TERM "$pid"
  while kill -0 "$pid" 2>/dev/null; do
    if ((SECONDS > deadline)); then
      echo "Still running after its shutdown timeout: killed." >&2
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

# With wrong settings the running service stays as it is.
restart() {
  .venv/bin/python -m app --check
  stop
  ./start_reranker.sh daemon
}

show_log() {
  [[ -f $log_file ]] || { echo "There is no $log_file yet." >&2; return 1; }
  "$@" "$log_file"
}

compose() {
  if docker compose version >/dev/null 2>&1; then docker compose "$@"; else docker-compose "$@"; fi
}

# Until a replica is healthy; not where it has ended, or was started again for having ended.
wait_for_replica() {
  local deadline=$((SECONDS + 600)) state=
  until [[ $state == running\ 0\ healthy ]]; do
    state=$(docker inspect --format '{{.State.Status}} {{.RestartCount}} {{.State.Health.Status}}' "$1")
    if [[ $state =~ ^(exited|dead)|\ [1-9] ]] || ((SECONDS > deadline)); then
      docker logs --tail 20 "$1" >&2
      echo "The new replica ${1:0:12} does not become ready ($state)." >&2
      return 1
    fi
    sleep 1
  done
}

# Have the proxy send nothing more to these addresses; it looks every two seconds.
leave() {
  compose exec -T proxy sh -c 'printf "%s\n" "$@" >/tmp/reranker/leaving' sh "$@"
}

# However a rolling restart ends: no replica that is not ready stays, and the proxy sends to all others.
new=
end_rolling_restart() {
  [[ -z $new ]] || docker rm --force "$new" >/dev/null || true
  leave none || true
}

rolling_restart() {
  local old id number=0 before
  docker info >/dev/null 2>&1 || { echo "No Docker engine answers." >&2; return 1; }
  mapfile -t old < <(compose ps -q replica)
  if ((${#old[@]} == 0)); then
    echo "No replicas run; 'docker-compose --profile scale up -d --scale replica=3 proxy' starts them." >&2
    return 1
  fi
  compose --profile scale run --rm --no-deps -T replica python -m app --check
  trap end_rolling_restart EXIT
  for id in "${old[@]}"; do
    echo "Replica $((++number)) of ${#old[@]}: starting a new one ..."
    before=$(compose ps -q replica)
    compose --profile scale up -d --no-deps --no-recreate --scale "replica=$((${#old[@]} + 1))" replica
    new=$(compose ps -q replica | grep -vxF "$before") || { echo "No new replica was started." >&2; return 1; }
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
  status | health | metrics) running || true ;; # for its URL
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
