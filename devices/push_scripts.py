"""What a device's shell does for :mod:`devices.push`.

POSIX shell, for dash, busybox, and Android's mksh and toybox: sizes are read with ``ls -ln``
(``stat`` has a different syntax everywhere, and busybox's ``wc`` reads the whole file) and
compared as text (mksh calculates with 32 bits).  The first argument is the store's root.
"""

# What of the names is there, in the store and of earlier pushes, and how much the store holds.
# Asking for a file counts as using it.  A partial that nobody has asked for in a day or two is
# removed (find counts days differently everywhere).
ASK = """
LC_ALL=C; export LC_ALL
umask 077
[ -d "$1/store" ] && [ -d "$1/incoming" ] || mkdir -p "$1/store" "$1/incoming" || exit 1
[ -w "$1/store" ] && [ -w "$1/incoming" ] || { echo "$1: Permission denied" >&2; exit 1; }
cd "$1/incoming" || exit 1
shift
for any in *; do
  [ -f "$any" ] || break
  for name in "$@"; do
    for partial in "$name".*; do
      [ -f "$partial" ] && touch "$partial"
    done
  done
  find . -type f -mtime +1 -exec rm -f {} \\;
  ls -ln
  break
done
cd ../store || exit 1
echo stored
there=$(ls -ln "$@" 2> /dev/null)
whole=$?
[ -n "$there" ] && echo "$there" && touch -c "$@" 2> /dev/null
[ "$whole" -eq 0 ] && exit 0
set -- $(du -sk .)
echo "used $1"
"""

_HASH = """
LC_ALL=C; export LC_ALL
cd "$1/incoming" || exit 1
partial=$2 name=$3 sha256=$4 size=$5
size_of() { set -- $(ls -ln "$1" 2> /dev/null); echo "$5"; }
inode_of() { set -- $(ls -in "$1" 2> /dev/null); echo "$1"; }
there() { [ "$(size_of "../store/$name")" = "$size" ]; }
# What was cut short since it was hashed may not keep the name, not even for the blink of a rename.
adopt() {
  chmod 700 "$partial" 2> /dev/null
  [ "$(size_of "$partial")" = "$size" ] && mv -f "$partial" "../store/$name" || return 1
  there || { rm -f "../store/$name"; return 1; }
}
"""

# Hash what arrived, and only then give it its name.  OpenSSL, where it is, hashes several times as
# fast as coreutils, but takes longer to start than it gains on less than a megabyte.  Another host
# may have gone on with the same part, and be done first.
# Exit code 3: other bytes (now removed), 4: it is gone, 5: the device cannot hash.
ADOPT = (
    _HASH
    + """
fast() { openssl dgst -sha256 -r < "$partial" 2> /dev/null; }
line=$([ "${#size}" -ge 7 ] && fast) || line=$(sha256sum < "$partial") || line=$(fast)
if [ "${line%% *}" = "$sha256" ]; then
  adopt && exit 0
  there && exit 0
  [ "$(size_of "$partial")" = "$size" ] && exit 1
elif [ ! -f "$partial" ]; then
  there && exit 0
  exit 4
fi
rm -f "$partial"
[ -n "$line" ] || exit 5
echo "${line%% *}"
exit 3
"""
)

# The same while the bytes still arrive: read on from where the last look ended.  It only ever
# succeeds or leaves things as they are; without growth for a second or so it gives up.
FOLLOW = (
    _HASH
    + """
doze() { sleep "0.$1" 2> /dev/null || sleep 1; }
looks=0
until [ -f "$partial" ]; do
  looks=$((looks + 1))
  [ "$looks" -gt 100 ] && exit 4
  doze 02
done
inode=$(inode_of "$partial")
exec 3< "$partial" || exit 4
if command -v openssl > /dev/null; then hash="openssl dgst -sha256 -r"; else hash=sha256sum; fi
line=$({
  idle=0 before=
  while [ "$idle" -lt 40 ]; do
    now=$(size_of "$partial")
    cat <&3
    [ "$now" = "$size" ] || [ -z "$now" ] && break
    if [ "$now" = "$before" ]; then idle=$((idle + 1)) && doze 04; else idle=0 && doze 01; fi
    before=$now
  done
} | $hash)
[ "${line%% *}" = "$sha256" ] && [ "$(inode_of "$partial")" = "$inode" ] && adopt
"""
)

# Take a part over under a name of one's own: of several hosts that try, one succeeds.
CLAIM = """
cd "$1/incoming" && mv "$2" "$3"
"""

# All files of the store, the least recently used first; then the names in use by any process
# that may be looked at: open, mapped into memory, or named on its command line.
LIST = """
LC_ALL=C; export LC_ALL
cd "$1/store" || exit 1
ls -lntr
echo used
{
  cat /proc/[0-9]*/maps
  ls -l /proc/[0-9]*/fd
  cat /proc/[0-9]*/cmdline | tr '\\0' '\\n'
} 2> /dev/null | grep -o '[0-9a-f]\\{64\\}[.0-9A-Za-z_]*' | sort -u
exit 0
"""

REMOVE = """
cd "$1" || exit 1
shift
rm -f "$@"
"""

# The hashes of all files of the store; without any, that of nothing, under another name.
HASHES = """
LC_ALL=C; export LC_ALL
[ -d "$1/store" ] || exit 0
cd "$1/store" || exit 1
names() { ls | grep '^[0-9a-f]\\{64\\}[.0-9A-Za-z_]*$'; }
if command -v openssl > /dev/null; then names | xargs openssl dgst -sha256 -r
elif command -v sha256sum > /dev/null; then names | xargs sha256sum
else exit 5
fi
"""
