#!/usr/bin/env bash
# Build the verified checker: its proof first, then the program that Coq translates it to.
set -euo pipefail
cd "$(dirname "$0")"

packages="coq libcoq-flocq ocaml-nox ocaml-findlib libzarith-ocaml-dev"
install="apt-get update && apt-get install -y --no-install-recommends $packages"
ready() {
    command -v coqc && command -v ocamlfind && ocamlfind query zarith
}
if ! ready > /dev/null 2>&1; then
    if [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
        bash -c "$install" || { echo "make verified-checker: '$install' failed" >&2; exit 1; }
    else
        echo "make verified-checker: Coq, OCaml or zarith is not installed: as root, run" >&2
        echo "    $install" >&2
        exit 1
    fi
fi

coq_makefile -f _CoqProject -o Makefile.coq > /dev/null
make -f Makefile.coq -j1 --no-print-directory CheckerProof.vo
# Always: what it writes may have been removed.
coqc -q -Q . Robustcert Extract.v
cd program
ocamlfind ocamlopt -package zarith -linkpkg -inline 100 \
    integers.ml checker.mli checker.ml main.ml -o ../verified-checker
