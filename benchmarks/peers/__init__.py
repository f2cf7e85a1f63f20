"""Other servers, each behind a script with two verbs: `serve` and `load`.

    python -m benchmarks.peers.NAME serve
    python -m benchmarks.peers.NAME load ADDRESSES SETTING [DOOR]

`serve` prints one line of JSON, its addresses by the name of their door. `load` prints an empty object once it has had
an answer; for each line `go N` it then asks N times and prints how long that took. Each runs in the environment of its
peer, under .venv-peers/, so that these files need nothing of Stillhouse but the table.
"""
