# shellcheck shell=bash
# What the start and manage scripts know of the background process. To be sourced from the project's root.

pid_file=reranker.pid
export log_file=reranker.log

# Where a client on this machine reaches the service.
case ${RERANKER_HOST:-127.0.0.1} in
  0.0.0.0) url_host=127.0.0.1 ;;
  ::) url_host='[::1]' ;;
  *:*) url_host="[$RERANKER_HOST]" ;;
  *) url_host=${RERANKER_HOST:-127.0.0.1} ;;
esac
export url="http://$url_host:${RERANKER_PORT:-8000}"

# Whether the process of the pid file lives, and is ours and not one that got its number later.
running() {
  local pid
  [[ -f $pid_file ]] && pid=$(cat "$pid_file") && kill -0 "$pid" 2>/dev/null || return 1
  [[ ! -r /proc/$pid/cmdline ]] || grep -qE 'app|start_reranker' "/proc/$pid/cmdline"
}

# The comment at the head of the calling script.
usage() { awk 'NR > 1 && !/^#/ { exit } NR > 1 { sub(/^# ?/, ""); print }' "$0"; }
