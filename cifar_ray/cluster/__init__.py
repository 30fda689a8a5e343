"""Ray as a cluster: connecting to it, planning its resources, its errors and its private parts."""
