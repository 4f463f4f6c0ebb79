# shellcheck shell=bash
# Sourced by the other scripts: makes .venv and installs rlzero into it.
# PYTHON names the interpreter to start from (default: python3).
VENV=.venv        # the environment
CONSTRAINTS=''    # versions; the tested ones of its Python where it is empty

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit

# Large pages for large arrays, in tests too; a program asks for more by itself.
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"

die() {
  echo "error: $*" >&2
  exit 2
}

# install_into_venv [EXTRA]: does nothing where setup.py has not changed since.
install_into_venv() {
  local base="${PYTHON:-python3}" extra="${1:-}" found constraints stamp
  if [[ ! -x "$VENV/bin/python" ]]; then
    found="$("$base" -c 'import sys; print("%d.%d" % sys.version_info[:2])')" ||
      die "'$base' does not run; install Python 3.11 to 3.13, or name it with" \
        "PYTHON=/path/to/python."
    case "$found" in
      3.11 | 3.12 | 3.13) ;;
      *) die "'$base' is Python $found; rlzero needs 3.11 to 3.13, which" \
        "PYTHON=/path/to/python can name." ;;
    esac
    "$base" -m venv "$VENV" || {
      rm -rf "$VENV"
      die "'$base' cannot make $VENV (see above); on Debian and Ubuntu" \
        "'apt install python3-venv' helps."
    }
  fi
  # The versions that this commit was tested with, so that a run that resumes
  # next year has the same JAX and ends with the same bits.
  found="$("$VENV/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')"
  constraints="${CONSTRAINTS:-launch/constraints/python$found.txt}"
  stamp="$VENV/installed-${extra:-base}-$(cat setup.py "$constraints" |
    cksum | cut -d ' ' -f 1)"
  if [[ ! -e "$stamp" ]]; then
    echo "Installing rlzero${extra:+ [$extra]} into $VENV ..."
    "$VENV/bin/python" -m pip install -qq -c "$constraints" \
      -e ".${extra:+[$extra]}" ||
      die "pip could not install rlzero (see above)."
    touch "$stamp"
  fi
}
