#!/usr/bin/env bash
# Start the reranker service. The first start installs it into .venv.
#
#   ./start_reranker.sh [fg|daemon]
#
#   fg       run in the foreground (default); Ctrl-C stops it
#   daemon   run in the background and return when the service is ready; the log is reranker.log
#
# Settings are environment variables such as RERANKER_PORT=8000: see docs/configuration.md.
set -euo pipefail
cd "$(dirname "$0")"
source scripts/process.sh

# Lock this script, which always exists. The lock ends with the process. Without flock there is no lock.
lock() {
  exec 9<start_reranker.sh
  ! command -v flock >/dev/null || flock --nonblock 9 || { refuse_second_start; echo "Another start is in progress." >&2; exit 1; }
}

refuse_second_start() {
  if running; then
    echo "Already running with pid $pid on $url. To stop it: ./manage_reranker.sh stop" >&2
    exit 1
  fi
  if local_curl --max-time 2 --output /dev/null "$url"; then
    echo "Another program already responds on $url. Set RERANKER_PORT to another port." >&2
    exit 1
  fi
}

start_foreground() {
  remember $$
  exec .venv/bin/python -m app
}

start_daemon() {
  local start_of_log
  touch "$log_file"
  start_of_log=$(($(wc -c <"$log_file") + 1))
  # Detach from the terminal: in a new session if setsid is available.
  "$(command -v setsid || command -v nohup)" .venv/bin/python -m app >>"$log_file" 2>&1 </dev/null 9<&- &
  remember $!
  echo "Starting with pid $!, log in $log_file ..."
  until local_curl --fail --max-time 2 --output /dev/null "$url/health/ready"; do
    if ! kill -0 $! 2>/dev/null; then
      [[ $(cat "$pid_file") != "$! "* ]] || rm -f "$pid_file"
      echo "The service failed to start:" >&2
      tail -c "+$start_of_log" "$log_file" >&2
      exit 1
    fi
    sleep 0.2
  done
  tail -c "+$start_of_log" "$log_file"
}

mode=${1:-fg}
if [[ $# -gt 1 || ! $mode =~ ^(fg|daemon)$ ]]; then
  usage >&2
  exit 2
fi
lock
refuse_second_start
scripts/setup runtime
if [[ $mode == fg ]]; then start_foreground; else start_daemon; fi
