"""What two nodes say to each other.

*Control* is one TLS 1.3 session between two nodes; on it go envelopes (a 4-byte big-endian length, then one
msgpack message of `message.py`). *Lanes* carry payload only (`lane.py`). Everything a peer sends is checked
before it is believed: sizes against `limits.py`, shapes by the decoder, contents by the id they are named by.

Order of a session: both sides send `Hello`; then `Vector` and `Entries` until both logs are equal; after that
any message at any time. `Ping` is answered by `Pong` at once; a node that says nothing for
`limits.NODE_GONE_SECONDS` is gone.

Fetching (the fetcher asks, the provider answers):

    Want(tree)                  -> Have(tree, which blocks)       and more of them as more arrive
    Want(tree, versions)        -> the same; `tree` is what the fetcher calls these versions of files
    RecordsWanted(tree, ids)    -> Records(parts)                 manifests and trees, by id
    LaneOpen                    -> LaneReady(token, key)          the fetcher then dials the lane
    Fetch(lane, blocks)         -> payload on the lane, or Refused(...) on control
    Progress(tree, state)       how far the fetcher is; `durable` means whole and synced
    Keeps(trees, gone)          which trees a node holds whole, said at once and at every change
    Ask(versions)               -> Held(which of them are whole and synced)
    Grown(volume)               whoever lacks versions of it may ask again
    Draining(on), Offer(...)    the sender is to be unplugged, and asks others to take copies

Non-goals: no block is ever pushed unasked; no peer is asked to relay a question.
"""
