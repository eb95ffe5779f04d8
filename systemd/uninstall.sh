#!/usr/bin/env bash
# Take away what install.sh has installed.
#
#   ./uninstall.sh                 show what would be done
#   sudo ./uninstall.sh --yes      do it; settings, secrets and the hub's data stay
#
#   --purge        those, too: /etc/hub, /var/lib/hub. Tokens that were made with the secret are void from then on
#   --prefix DIR   /opt/hub
#   --root DIR     everything below DIR, nothing is stopped: for tests and images
# Exit status: 0 done, 1 failed, 2 wrong arguments.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=steps.sh
. "$here/steps.sh"

prefix=/opt/hub
root=''
purge=no
while [ $# -gt 0 ]; do
  case $1 in
    --yes) yes=yes ;;
    --purge) purge=yes ;;
    --prefix) need_value "$@"; prefix=$2; shift ;;
    --root) need_value "$@"; root=$2; shift ;;
    -h | --help) sed -n '2,/^set -/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
    *) fail "found $1; allowed: --yes --purge --prefix --root" 2 ;;
  esac
  shift
done
check_prefix "$prefix"
check_root_directory
check_user

units=$(at /etc/systemd/system)
say "Uninstalling the hub from $prefix${root:+ below $root}:"

# Sockets first: a client that comes would start the service again. Instances as they are enabled or run.
instances() {
  {
    find "$units" -path '*.wants/*' \( -name 'hub@*.service' -o -name 'hub-http@*.socket' -o -name 'hub-https@*.socket' \) -printf '%f\n' 2>/dev/null
    if [ -z "$root" ]; then
      systemctl list-units --all --plain --no-legend 'hub@*.service' 'hub-http@*.socket' 'hub-https@*.socket' | cut -d' ' -f1
    fi
  } | sort -ru
}
stop() {
  if [ -z "$root" ]; then manager disable --now "$1"; else manager disable "$1"; fi
}

while IFS= read -r unit; do
  if [ -n "$unit" ]; then step "stop and disable $unit" stop "$unit"; fi
done < <(instances || true)
for unit in hub.service hub-tune.service; do
  if [ -e "$units/$unit" ]; then step "stop and disable $unit" stop "$unit"; fi
done

for unit in hub.service hub@.service hub-tune.service hub-http@.socket hub-https@.socket hub.service.d/10-secrets.conf; do
  if [ -e "$units/$unit" ]; then step "remove /etc/systemd/system/$unit" rm -f "$units/$unit"; fi
done
if [ -d "$units/hub.service.d" ]; then
  # What else is in there is the operator's.
  if [ "$yes" = yes ]; then rmdir --ignore-fail-on-non-empty "$units/hub.service.d"; fi
fi
sysctl=$(at /etc/sysctl.d/60-hub.conf)
if [ -e "$sysctl" ]; then
  if cmp -s "$here/../config/sysctl/60-hub.conf" "$sysctl"; then
    step "remove /etc/sysctl.d/60-hub.conf; its values hold until the next boot" rm -f "$sysctl"
  else
    say "  (kept: /etc/sysctl.d/60-hub.conf, which has been changed)"
  fi
fi

link=$(at "$prefix")
if [ -L "$link" ]; then step "remove $prefix" rm -f "$link"; fi
if [ -d "$link-releases" ]; then step "remove $prefix-releases" rm -rf "$link-releases"; fi

# With DynamicUser=yes /var/lib/hub is a link into private.
for path in /etc/hub /var/lib/hub /var/lib/private/hub; do
  if [ -e "$(at $path)" ] || [ -L "$(at $path)" ]; then
    if [ "$purge" = yes ]; then
      step "remove $path" rm -rf "$(at $path)"
    else
      say "  (kept: $path)"
    fi
  fi
done
if [ "$changes" != 0 ]; then step "have systemd read the units" manager daemon-reload; fi
ending
