"""What a run will cost on this machine, before it runs: hours, memory and disk of each stage and of all.

`plan` asks the workflow which jobs there are; `work` counts what a job does, as calls of the network, with `unitwise`
for what is learned unit by unit and a file of `methods` for each method; `networks` says how large that is; `calls`
does each kind of call, and `speed` keeps what it takes here; `costs` puts them together, `schedule` has the jobs wait
for each other, and `report` prints.
"""
