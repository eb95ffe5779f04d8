#!/usr/bin/env bash
# Install the hub as a service of this machine, or bring an installed one to another version.
#
#   ./install.sh                     show what would be done
#   sudo ./install.sh --yes          do it
#
#   --from SOURCE    a wheel file, or a checkout; this one's own if it is not named
#   --python PYTHON  to make the virtual environment with, 3.11 or newer (python3)
#   --pip-args ARGS  for `pip install`, such as "--no-index --find-links /media/wheels" on a machine without a network
#   --without-valkey do not install the embedded Valkey (hub[embedded]); then redis.url has to name one
#   --no-tune        leave the kernel's settings alone
#   --no-start       do not start the service
#   --prefix DIR     /opt/hub; the units name it, so another one changes them
#   --root DIR       everything below DIR, nothing is started: for tests, as the virtual environment does not move
#
# What it does, each step only where it is not done yet:
#   /opt/hub-releases/VERSION-TIME   a virtual environment with the hub, tried before it is used
#   /opt/hub                         a link to it, changed at once; the release before stays, to go back to, and any that
#                                    a hub still runs from
#   /etc/hub/hub.toml                settings, never touched again
#   /etc/hub/hmac_secret, api_key    secrets, made at random, for root alone; systemd hands copies to the hub
#   /etc/systemd/system/             the units, and hub.service.d/10-secrets.conf
#   /etc/sysctl.d/60-hub.conf        kernel settings, never touched again
# Exit status: 0 done, 1 failed, 2 wrong arguments. After a failure nothing but a release that nobody uses is new.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=steps.sh
. "$here/steps.sh"

source_of_hub=${here%/*}
python=python3
pip_args=()
extra='[embedded]'
tune=yes
start=yes
prefix=/opt/hub
root=''
kept_releases=2
conflicts=0

while [ $# -gt 0 ]; do
  case $1 in
    --yes) yes=yes ;;
    --from) need_value "$@"; source_of_hub=$2; shift ;;
    --python) need_value "$@"; python=$2; shift ;;
    --pip-args) need_value "$@"; read -r -a pip_args <<<"$2"; shift ;;
    --without-valkey) extra='' ;;
    --no-tune) tune=no ;;
    --no-start) start=no ;;
    --prefix) need_value "$@"; prefix=$2; shift ;;
    --root) need_value "$@"; root=$2; shift ;;
    -h | --help) sed -n '2,/^set -/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
    *) fail "found $1; allowed: --yes --from --python --pip-args --without-valkey --no-tune --no-start --prefix --root" 2 ;;
  esac
  shift
done

check_prefix "$prefix"
check_root_directory
check_user
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
  fail "--python: found $python; allowed: Python 3.11 or newer"
"$python" -c 'import venv, ensurepip' 2>/dev/null || fail "$python cannot make virtual environments: apt-get install python3-venv"

releases=$(at "$prefix-releases")
units=$(at /etc/systemd/system)
settings=$(at /etc/hub)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# The release.

# What `pip` is to install, as it stands in $scratch: a build leaves files in a checkout, and takes in those that an
# earlier one has left.
fetch_source() {
  if [ -d "$source_of_hub" ]; then
    if [ ! -f "$source_of_hub/setup.cfg" ] || [ ! -f "$source_of_hub/hub/__init__.py" ]; then
      fail "--from: found $source_of_hub; allowed: a wheel file, or a checkout of the hub"
    fi
    mkdir "$scratch/source"
    (cd "$source_of_hub" && cp -R hub setup.cfg setup.py README.md LICENSE "$scratch/source")
    find "$scratch/source" -name __pycache__ -prune -exec rm -rf {} +
    package=$scratch/source
    version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' "$source_of_hub/hub/__init__.py")
  else
    case $source_of_hub in
      *.whl) [ -f "$source_of_hub" ] || fail "--from: found $source_of_hub; allowed: a file that is there" ;;
      *) fail "--from: found $source_of_hub; allowed: a wheel file, or a checkout of the hub" ;;
    esac
    package=$(cd "$(dirname "$source_of_hub")" && pwd)/${source_of_hub##*/}
    version=$(basename "$source_of_hub" | cut -d- -f2)
  fi
  # So an unchanged source is known again.
  if [ -d "$package" ]; then
    mark=$(cd "$package" && find . -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum)
  else
    mark=$(sha256sum <"$package")
  fi
  mark=${mark%% *}$extra
}

installed() {
  [ "$(cat "$(at "$prefix")/.source" 2>/dev/null)" = "$mark" ]
}

build_release() {
  mkdir -p "$releases"
  rm -rf "$release"
  # Whoever runs the hub reads it, whatever root's umask is. Joined by &&: before || nothing else ends the subshell.
  (
    umask 022 &&
      "$python" -m venv "$release" &&
      "$release/bin/pip" install --quiet --disable-pip-version-check "${pip_args[@]}" "$package$extra" &&
      printf '%s\n' "$mark" >"$release/.source"
  ) || { rm -rf "$release"; fail "pip could not install $source_of_hub; its own lines above say why"; }
  "$release/bin/hub" --version >/dev/null || { rm -rf "$release"; fail "the new release does not run"; }
}

# Where the operator hands over a secret of that name, from a drop-in of another name, there is nothing to make.
given() {
  [ -d "$units/hub.service.d" ] && grep -qs --exclude=10-secrets.conf -r \
    '^\(Load\|Set\)Credential\(Encrypted\)\?=auth\.hmac_secret:' "$units/hub.service.d"
}

# Whether the units hand over the secret of that setting, or will.
handed_over() {
  if grep -qs -r "^\(Load\|Set\)Credential\(Encrypted\)\?=$1:" "$units/hub.service.d"; then return 0; fi
  ! given && [ ! -e "$units/hub.service.d/10-secrets.conf" ]
}

# Settings from before that name a secret's file, which the units hand over, too: the hub takes one of the two, so that
# nobody has to guess which one holds.
check_secrets() {
  [ -f "$settings/hub.toml" ] || return 0
  local key path secret
  while IFS=' ' read -r key path; do
    if handed_over "${key%_file}"; then
      say "  $key in /etc/hub/hub.toml names $path, and hub.service hands the same secret over as a credential."
      case $key in auth.*) secret=hmac_secret ;; *) secret=api_key ;; esac
      say "      To keep that secret:  install -m 600 $path /etc/hub/$secret"
      say "      Then take the line out of hub.toml, and run this again."
      conflicts=$((conflicts + 1))
    fi
  done < <("$python" - "$settings/hub.toml" <<'PYTHON'
import sys, tomllib

try:
    with open(sys.argv[1], "rb") as file:
        values = tomllib.load(file)
except (OSError, ValueError):
    sys.exit()  # `hub check` says what is wrong with it
for table, name in (("auth", "hmac_secret_file"), ("api", "key_file")):
    section = values.get(table)
    path = section.get(name) if isinstance(section, dict) else None
    if isinstance(path, str) and path:
        print(f"{table}.{name}", path)
PYTHON
  )
  [ "$conflicts" = 0 ] || fail "/etc/hub/hub.toml and the units do not fit together; nothing was changed"
}

# The settings that are there, judged by the new release, with the secrets that the units hand over.
check_settings() {
  [ -f "$settings/hub.toml" ] || return 0
  mkdir -m 700 "$scratch/credentials"
  local line name path
  while IFS= read -r line; do
    line=${line#LoadCredential=}
    name=${line%%:*} path=$(at "${line#*:}")
    if [ -r "$path" ]; then cp "$path" "$scratch/credentials/$name"; fi
  done < <(cat "$units/hub.service" "$units"/hub.service.d/*.conf 2>/dev/null | grep '^LoadCredential=[^:]*:/' || true)
  # Those that are yet to be made, or handed over.
  if ! given && [ ! -e "$units/hub.service.d/10-secrets.conf" ]; then
    printf '%064d' 0 >"$scratch/credentials/auth.hmac_secret"
    printf '%064d' 1 >"$scratch/credentials/api.key"
  fi
  CREDENTIALS_DIRECTORY=$scratch/credentials "$release/bin/hub" check --config "$settings/hub.toml" >/dev/null ||
    { rm -rf "$release"; fail "the new release does not take $settings/hub.toml; the installed one stays"; }
}

# Renamed over the old link, so that there is no moment without one.
use_release() {
  # Relative, so that it is right below --root, too.
  ln -sfn "${releases##*/}/${release##*/}" "$(at "$prefix").new"
  mv -T "$(at "$prefix").new" "$(at "$prefix")"
}

# But for one that a hub still runs from, which loads parts of it when it needs them.
remove_old_releases() {
  local old
  find "$releases" -mindepth 1 -maxdepth 1 -type d ! -path "$release" -printf '%T@ %p\n' | sort -rn |
    tail -n "+$kept_releases" | cut -d' ' -f2- | while IFS= read -r old; do
      if ! grep -qsF "$old/bin/" /proc/[0-9]*/cmdline; then rm -rf "$old"; fi
    done
}

# Files.

# place FILE PATH MODE: a file of ours, which is what it is here.
place() {
  local path
  path=$(at "$2")
  if [ -f "$path" ] && cmp -s "$1" "$path"; then return 0; fi
  if [ -f "$path" ]; then
    step "change $2" write "$1" "$path" "$3"
    if [ "$yes" != yes ]; then diff -U1 "$path" "$1" | sed '1,2d;s/^/      /' || true; fi
  else
    step "write $2" write "$1" "$path" "$3"
  fi
}

# place_once FILE PATH MODE: a file that is the operator's from then on.
place_once() {
  if [ ! -e "$(at "$2")" ]; then step "write $2" write "$1" "$(at "$2")" "$3"; fi
}

# Whole or not at all: written beside its place, then renamed.
write() {
  install -d -m 755 "$(dirname "$2")"
  install -m "$3" "$1" "$2.new"
  mv -T "$2.new" "$2"
}

make_secret() {
  (
    umask 077
    install -d -m 755 "$settings"
    "$python" -c 'import secrets; print(secrets.token_hex(32))' >"$1.new"
    # Not over one that has come meanwhile: every token would be void.
    mv -n "$1.new" "$1"
    rm -f "$1.new"
  )
}

unit_with_prefix() { sed "s#/opt/hub/#$prefix/#" "$here/$1" >"$scratch/$1"; }

say "Installing the hub from $source_of_hub into $prefix${root:+ below $root}:"
check_secrets
fetch_source
release=$releases/$version-$(date -u +%Y%m%dT%H%M%S)
if ! installed; then
  if [ -e "$(at "$prefix")" ] && [ ! -L "$(at "$prefix")" ]; then
    fail "--prefix: found $(at "$prefix"), which is no link of ours; move it away first"
  fi
  step "make the virtual environment ${release#"$root"} with hub $version$extra" build_release
  if [ "$yes" = yes ]; then check_settings; fi
  step "let $prefix be it" use_release
  upgraded=yes
fi

place_once "$here/../config/hub.toml" /etc/hub/hub.toml 644
if ! given; then
  for secret in hmac_secret api_key; do
    if [ ! -e "$settings/$secret" ]; then step "make the secret /etc/hub/$secret" make_secret "$settings/$secret"; fi
  done
  cat >"$scratch/10-secrets.conf" <<'CONF'
# Of install.sh. What else there is stands in hub.service.
[Service]
LoadCredential=auth.hmac_secret:/etc/hub/hmac_secret
LoadCredential=api.key:/etc/hub/api_key
CONF
  place_once "$scratch/10-secrets.conf" /etc/systemd/system/hub.service.d/10-secrets.conf 644
fi

for unit in hub.service hub@.service hub-tune.service hub-http@.socket hub-https@.socket; do
  unit_with_prefix "$unit"
  place "$scratch/$unit" "/etc/systemd/system/$unit" 644
done
if [ "$tune" = yes ]; then place_once "$here/../config/sysctl/60-hub.conf" /etc/sysctl.d/60-hub.conf 644; fi

# The service.

if [ "$changes" != 0 ]; then step "have systemd read the units" manager daemon-reload; fi
# Links, whose other end is not there below --root.
enabled() { [ -L "$units/multi-user.target.wants/hub.service" ]; }
if [ "$tune" = yes ] && [ ! -L "$units/hub.service.wants/hub-tune.service" ]; then
  step "enable hub-tune.service" manager enable hub-tune.service
fi
if ! enabled; then
  step "enable hub.service" manager enable hub.service
  if [ "$start" = yes ] && [ -z "$root" ]; then step "start hub.service" manager start hub.service; fi
elif [ "${upgraded:-no}" = yes ]; then
  say "The hub that runs is still the old one. To have it take up the new one, with nobody refused:"
  say "      $prefix/bin/hub deploy --config /etc/hub/hub.toml"
  say "What has changed in the units holds from the next restart on: systemctl restart hub, when it suits its clients."
fi
if [ "$yes" = yes ] && [ -d "$releases" ] && [ "${upgraded:-no}" = yes ]; then remove_old_releases; fi
ending
