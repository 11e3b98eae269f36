"""Workers on this machine: processes forked from a zygote, and the sockets between them and us."""
