#!/usr/bin/env bash
# Manage a reranker service that runs in the background.
#
#   ./manage_reranker.sh start|stop|restart|status|tail|logs|health|metrics
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
# Settings given in front reach the new process: RERANKER_MAX_PARALLEL=8 ./manage_reranker.sh restart
set -euo pipefail
cd "$(dirname "$0")"
source scripts/process.sh

get() {
  local_curl --show-error --max-time 5 "$@" || { echo "No good answer from $url" >&2; return 1; }
}

pretty() { .venv/bin/python -m json.tool; }

stop() {
  if ! running; then
    rm -f "$pid_file"
    echo "Not running."
    return
  fi
  # Longer than the service itself may take: its shutdown timeout and the last answers.
  local deadline=$((SECONDS + ${shutdown_timeout%%.*} + 15))
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
  get --fail-with-body "$url/health" | pretty
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
  health) get --fail-with-body "$url/health" | pretty ;;
  metrics) get --fail "$url/metrics?format=json" | pretty ;;
  *) usage >&2; exit 2 ;;
esac
