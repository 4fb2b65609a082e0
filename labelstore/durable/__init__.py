"""Files that are written whole, flushed, and never removed unless this software wrote them.

There is one way to write a file for each purpose:

========================  ====================================================================================
`publish.publish`         files of a store, the lease among them: many at once, read back, no name is taken twice
`publish.replace`         a file of a store that changes: its root, a seal that was made again, the lease
`newfile.new_file`        a file that a command makes for its user: the name must be free
`newfile.new_version`     a file that a command keeps up to date: checkpoints, caches, reports
========================  ====================================================================================

`newfile.write_new` and `newfile.write_over` are the last two for content that is in memory. All four use `disk`, the
system calls, and `removing`, the only module that renames over, truncates and removes files, and only those that are
proven to be this software's. Reading goes through `storage`.
"""
