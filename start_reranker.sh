#!/usr/bin/env bash
# Start the reranker service; installs itself into .venv on the first start.
#
#   ./start_reranker.sh [fg|daemon]
#
#   fg       in the foreground (default); Ctrl-C stops it
#   daemon   in the background, log in reranker.log, returns once the service is ready
#
# Settings are environment variables, see the README. RERANKER_PORT=8000 is where it listens.
set -euo pipefail
cd "$(dirname "$0")"
source scripts/process.sh

# The lock is on a file that nobody removes, and ends with the process. Where there is no flock none is taken.
lock() {
  exec 9<start_reranker.sh
  ! command -v flock >/dev/null || flock --nonblock 9 || { refuse_second_start; echo "Another start is under way." >&2; exit 1; }
}

refuse_second_start() {
  if running; then
    echo "Already running with pid $pid on $url; './manage_reranker.sh stop' stops it." >&2
    exit 1
  fi
  if local_curl --max-time 2 --output /dev/null "$url"; then
    echo "Something else answers on $url already; set RERANKER_PORT to another port." >&2
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
  # Out of this terminal's reach: with a session of its own where there is setsid.
  "$(command -v setsid || command -v nohup)" .venv/bin/python -m app >>"$log_file" 2>&1 </dev/null 9<&- &
  remember $!
  echo "Starting with pid $!, log in $log_file ..."
  until local_curl --fail --max-time 2 --output /dev/null "$url/health/ready"; do
    if ! kill -0 $! 2>/dev/null; then
      [[ $(cat "$pid_file") != "$! "* ]] || rm -f "$pid_file"
      echo "The service did not start:" >&2
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
