"""The namespace: signed ops in hash-chained logs, folded into members, refs, and the files of every volume.

    the log         ops, entry (the format) · log, log_file, batch (one node's log) · judge (what is taken in)
                    · branches, acknowledged (who has what) · segments, upgrade, salvage, members_file (damage)
    the cluster     fold, membership, catalogue, heard, policy: members, refs, volumes, roles, and who had heard of
                    what when it wrote; a pure function of entries
    a volume        namespace, rows, row_source, heads, ids (the fold of its ops: pure) · tables, stored (SQLite) ·
                    volumes, opened, asof (kept up with the log) · shown (what is seen under which name: pure)
    its users       volume (`Handle`), paths, writing, filling, moving, claims · bundle · past, seeing · retention,
                    expiry · item (the values)
    rights with an end   leases (pure; nothing rests on them) · holds (this node's pins and leases)

log.db is the truth. Tables are a cache of it: they note up to which entry they are folded, and are made again when
the log says otherwise. Every state here is a function of a *set* of ops: no order of arrival, no duplicate and no
wall clock changes it.
"""
