# shellcheck shell=bash
# The background process, for the start and manage scripts. Source it from the project's root.

# One line: pid, URL, and the seconds that a shutdown may take.
pid_file=reranker.pid
export log_file=reranker.log
shutdown_timeout=$(
  LC_ALL=C awk -v delay="${RERANKER_SHUTDOWN_DELAY:-0}" -v timeout="${RERANKER_SHUTDOWN_TIMEOUT:-30}" 'BEGIN { print delay + timeout }'
)

# Kubernetes sets RERANKER_PORT to an address if a Service is named reranker. The service ignores that, too.
case ${RERANKER_PORT:-} in *://*) unset RERANKER_PORT ;; esac

# The URL for clients on this machine of a service with these settings.
host=${RERANKER_HOST:-127.0.0.1} host=${host#[} host=${host%]}
case $host in
  0.0.0.0) url=127.0.0.1 ;;
  ::) url=localhost ;;
  *:*) url="[$host]" ;;
  *) url=$host ;;
esac
url=http://$url:${RERANKER_PORT:-8000}

remember() { echo "$1 $url $shutdown_timeout" >"$pid_file"; }

# Whether a process has not ended. One that has ended keeps its pid until its parent asks for the exit status.
alive() {
  local state
  state=$(ps -o stat= -p "$1" 2>/dev/null || awk '{ sub(/.*\) /, ""); print $1 }' "/proc/$1/stat" 2>/dev/null) || return 1
  [[ -n $state && $state != Z* ]]
}

# Whether the service of the pid file is running; if so, sets pid, url and shutdown_timeout. Checks the command line,
# because another process may have got the same pid.
running() {
  local line
  [[ -f $pid_file ]] || return 1
  read -r -a line <"$pid_file"
  [[ ${line[0]:-} =~ ^[0-9]+$ ]] && alive "${line[0]}" || return 1
  { ps -o args= -p "${line[0]}" || tr '\0' ' ' <"/proc/${line[0]}/cmdline"; } 2>/dev/null |
    grep -qE -- 'python.* -m app *$' || return 1
  export pid=${line[0]}
  url=${line[1]:-$url}
  shutdown_timeout=${line[2]:-$shutdown_timeout}
}

# curl to this machine, without a proxy.
local_curl() { curl --silent --noproxy '*' "$@"; }

# Print the comment at the top of the calling script.
usage() { awk 'NR > 1 && !/^#/ { exit } NR > 1 { sub(/^# ?/, ""); print }' "$0"; }
if [[ ${1:-} == --help || ${1:-} == -h ]]; then usage; exit 0; fi
