"""The topics of `tbshare help TOPIC`."""

TOPICS = {
    "refs": """\
A ref names a tree of files: [VOLUME:]name[@rev]

  llama-70b                       the newest rev
  llama-70b@2                     that rev
  mlx-community/SmolLM2-135M      a name has at most one slash
  models:llama-70b                the volume said aloud; without it the default volume

Letters, digits, dot, dash and underscore make a name. A push to a name that exists makes the next rev; a push of
the same content makes none and moves nothing. A revision of Hugging Face is kept as a label of the rev.

An argument that begins with . or /, or that exists as a file, is a path and no ref.
""",
    "volumes": """\
A volume is a namespace over all nodes. Its mode says who may write:

  models   publish once: tbshare push makes refs in it; nothing changes afterwards
  media    every node reads and writes; every save is a version
  owner    one node writes, the others read

A file or directory of it is VOLUME:/path; as it was in a snapshot, VOLUME@SNAPSHOT:/path.

Forks. Nodes that cannot reach each other go on working. What both saved meanwhile is all kept: one version
has the name, the others stand beside it as `name (from NODE, 2026-11-23 14.05).ext` and in tbshare conflicts.
Nothing is merged and no clock decides; tbshare resolve says which has the name, the others stay in the
history. Equal bytes are no fork. Who edits a file that another deletes keeps it. A package (.fcpbundle, .drp,
.logicx ...) forks as a whole.

Leases (tbshare locks). While nodes reach each other, who has a file open for writing holds its lease, and
others get an error or a read-only file (volume set --locked). It ends by itself 10 seconds after its node is
gone. No safety rests on it: where it fails there is a fork, and no loss.

History. Every save is kept for 30 days, at most 10 % of the disk, oldest given up first; the newest save
always. tbshare history and restore work for deleted files too. A snapshot keeps what it names.

Copies. A save is `local` until other nodes have it, then `2 copies` and so on, then `everywhere`. tbshare
drain waits until nothing is only on this node.
""",
    "exit": """\
Exit status

    0   done; of a push: durable on every target
    1   failed; of status: something needs attention; of verify: something is corrupt
    2   the command line or config.toml is wrong
    3   some targets are pending or failed, the others are done
  130   interrupted

Every error is one line on stderr and a second line with a command that helps. TBSHARE_DEBUG=1 adds the traceback.
""",
    "pairing": """\
A cluster is a set of nodes that know each other's keys. One code lets one new node in.

  on a node of the cluster    tbshare pair             shows a code, good once, for two minutes and three tries
  on the new node             tbshare up
                              tbshare pair CODE        or CODE@ADDRESS, where it is not found by itself

The other nodes learn of it from the signed list of members. Who does not know the code learns that something
listens, and its public key; nothing else.
""",
    "space": """\
A push first says what it means for the space of each node. In config.toml:

  [store]
  path = "/Volumes/fast/tbshare"    may be another disk; when it is not mounted the daemon does not start
  keep_free = "10%"                 what the store leaves free
  max_bytes = "2TB"                 what it takes at most
  accept = "all"                    all: every push; on-demand: what is asked for here; none

  tbshare du           what is where, and what is shared
  tbshare evict REF    free it here; never the last copy
  tbshare rm REF       remove it everywhere; freed after 7 days, or at once with tbshare gc --now
""",
    "nas": """\
A network disk (NFS, SMB) and tbshare

The home, with its databases, belongs on a disk of the machine: on a network file system locks and syncs do not do
what they say, so it is refused there. Push from a network disk works: the files are copied as they are read, and
every node but the first gets them from other nodes instead of the network disk.

  tbshare push /Volumes/nas/models/llama-70b

The other way round, a Linux node can show a volume to machines that have no tbshare, by Samba over its mount:

  tbshare mount film /mnt/film --allow-other     (smbd is another user; see user_allow_other in /etc/fuse.conf)

and in smb.conf, with the user that mounted it as `force user`:

  [film]
  path = /mnt/film
  read only = no
  force user = anna
  inherit permissions = yes
  ea support = yes
  vfs objects = catia fruit streams_xattr
  fruit:metadata = stream
  fruit:resource = stream
  fruit:posix_rename = yes
  strict locking = no
  kernel oplocks = no
  durable handles = no

Then tags, Finder's information and resource forks of Macs are extended attributes in the volume. Who is to write
is asked by Samba; to tbshare all of it is the node's. Locks hold among clients of one Samba, not between nodes.
""",
}
