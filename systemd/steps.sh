# Steps that install.sh and uninstall.sh have in common; sourced by them.
# shellcheck shell=bash

# Each step is either done or only told, as --yes has it. Whatever changes anything goes through here.
yes=no
changes=0

say() { printf '%s\n' "$*"; }

fail() {
  printf '%s: %s\n' "${0##*/}" "$1" >&2
  exit "${2:-1}"
}

# step WORDS COMMAND…: say what is done, and do it with --yes.
step() {
  changes=$((changes + 1))
  say "  $1"
  shift
  if [ "$yes" = yes ]; then "$@"; fi
}

# A path of the machine that is installed to, whose / is $root.
at() { printf '%s%s' "$root" "$1"; }

# systemctl of this machine, or only of the files below --root, which takes enable and disable alone.
manager() {
  if [ -z "$root" ]; then
    systemctl --quiet "$@"
  elif [ "$1" = enable ] || [ "$1" = disable ]; then
    systemctl --quiet --root="$root" "$@"
  fi
}

need_value() { [ $# -ge 2 ] || fail "$1: found nothing behind it; allowed: a value" 2; }

# A directory that `rm -r` may be given: absolute, no dots, not one of the machine's own.
check_prefix() {
  case $1 in
    / | /usr | /etc | /var | /opt | /bin | /lib* | /home | /root | /srv | /run | /tmp) fail "--prefix: found $1; allowed: a directory of the hub's own" 2 ;;
    *..* | *//* | */ | *[!A-Za-z0-9/._-]*) fail "--prefix: found $1; allowed: a path of A-Z a-z 0-9 / . _ - without .. or a slash at its end" 2 ;;
    /*) ;;
    *) fail "--prefix: found $1; allowed: an absolute path" 2 ;;
  esac
}

check_root_directory() {
  [ -z "$root" ] && return
  case $root in /*) ;; *) fail "--root: found $root; allowed: an absolute path" 2 ;; esac
  [ -d "$root" ] || fail "--root: found $root; allowed: a directory that is there" 2
  root=${root%/}
}

check_user() {
  if [ "$yes" = yes ] && [ -z "$root" ] && [ "$(id -u)" != 0 ]; then
    fail "found user $(id -un); allowed: root, as with sudo (without --yes nothing is changed, and anybody may look)"
  fi
}

ending() {
  if [ "$changes" = 0 ]; then
    say "Nothing to do."
  elif [ "$yes" != yes ]; then
    say "Nothing was changed: $changes steps to do, and --yes does them."
  fi
}
