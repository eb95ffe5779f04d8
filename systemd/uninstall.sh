#!/usr/bin/env bash
# Take away what install.sh has installed.
#
#   ./uninstall.sh                 show what would be done
#   sudo ./uninstall.sh --yes      do it; settings, secrets and the hub's data stay
#
#   --undo-tune    take back what `hub tune --apply` has changed, before the hub that can do it is gone
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
undo_tune=no
while [ $# -gt 0 ]; do
  case $1 in
    --yes) yes=yes ;;
    --undo-tune) undo_tune=yes ;;
    --purge) purge=yes ;;
    --prefix) need_value "$@"; prefix=$2; shift ;;
    --root) need_value "$@"; root=$2; shift ;;
    -h | --help) sed -n '2,/^set -/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
    *) fail "found $1; allowed: --yes --undo-tune --purge --prefix --root" 2 ;;
  esac
  shift
done
check_prefix "$prefix"
check_root_directory
check_user

units=$(at /etc/systemd/system)
say "Uninstalling the hub from $prefix${root:+ below $root}:"

# First of all: it says so itself, and nothing has been removed, where somebody has changed the same since.
hub=$(at "$prefix")/bin/hub
undo_tuning() {
  if [ -n "$root" ]; then "$hub" tune --undo --root "$root"; else "$hub" tune --undo --now; fi ||
    fail "what \`hub tune --apply\` has changed was not taken back; nothing was removed"
}
if [ -e "$(at /var/lib/hub-tune/record.json)" ]; then
  if [ "$undo_tune" != yes ]; then
    say "  (kept: what \`hub tune --apply\` has changed; --undo-tune takes it back)"
  elif [ ! -x "$hub" ]; then
    fail "--undo-tune: found no $hub, which has to do it; allowed: with the hub installed"
  else
    step "take back what \`hub tune --apply\` has changed" undo_tuning
  fi
fi

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
