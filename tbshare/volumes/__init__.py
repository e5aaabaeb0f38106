"""The namespace: signed ops in hash-chained logs, folded into members, volumes and refs.

`entry` is the format, `fold` the meaning (pure), `log` the durable log of one node, `holds` its pins and leases.
"""
