#!/usr/bin/env bash
# Check every proof with Coq, and that nothing but the named axioms was used.
set -euo pipefail
cd "$(dirname "$0")"

packages="coq libcoq-flocq"
install="apt-get update && apt-get install -y --no-install-recommends $packages"
flocq() {
    local folder
    folder=$(mktemp -d)
    echo 'From Flocq Require Import Core.' > "$folder/Probe.v"
    coqc -q "$folder/Probe.v" > "$folder/log" 2>&1
    local status=$?
    rm -rf "$folder"
    return $status
}
if ! command -v coqc > /dev/null || ! flocq; then
    if [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
        bash -c "$install" || { echo "make proofs: '$install' failed" >&2; exit 1; }
    else
        echo "make proofs: Coq with Flocq is not installed: as root, run" >&2
        echo "    $install" >&2
        exit 1
    fi
fi

# Words that let a theorem pass without a proof.
if grep -nwE 'Admitted|admit|give_up|Axioms?|Parameters?|Conjecture|Unset|bypass_check' ./*.v; then
    echo "make proofs: the lines above assume what should be proved" >&2
    exit 1
fi

coq_makefile -f _CoqProject -o Makefile.coq > /dev/null
make -f Makefile.coq -j1 --no-print-directory

# What Coq says that the claimed theorems rest on.
python=${PYTHON:-python3}
"$python" assumptions.py write > Assumptions.v
coqc -q -Q . Robustcert Assumptions.v > assumptions.log
"$python" assumptions.py check assumptions.log

# A second, smaller program reads the compiled proofs from the start.
modules=$(sed -nE 's/^(\w+)\.\w+$/Robustcert.\1/p' claims.txt | sort -u)
# shellcheck disable=SC2086
coqchk -silent -Q . Robustcert $modules > coqchk.log 2>&1 || { cat coqchk.log >&2; exit 1; }
