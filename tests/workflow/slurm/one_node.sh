#!/usr/bin/env bash
# A Slurm of one node on this machine, to try profiles/slurm with. As root, where no other Slurm is configured.
#   one_node.sh install        Debian's packages
#   one_node.sh start FOLDER   the daemons, their state and logs in FOLDER
#   one_node.sh stop FOLDER
set -euo pipefail
conf=/etc/slurm/slurm.conf # srun inside a job looks nowhere else
ours='# quest: a node for tests'

fail() { printf '%s\n' "$*" >&2; exit 1; }

install() {
    DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet slurm-wlm munge
}

start() {
    local folder=$1 host
    host=$(hostname -s)
    [[ $(id -u) == 0 ]] || fail "starting Slurm takes root"
    [[ ! -e $conf || $(head -n 1 "$conf") == "$ours" ]] || fail "$conf is there already, and not of this script"
    mkdir -p "$folder"/{state,spool,log} /etc/slurm /run/munge
    chown munge: /run/munge
    pgrep -x munged > /dev/null || runuser -u munge -- munged
    cat > "$conf" <<CONF
$ours
ClusterName=one
SlurmctldHost=$host(127.0.0.1)
AuthType=auth/munge
SlurmUser=root
SlurmctldPort=16817
SlurmdPort=16818
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/log/slurmctld
SlurmdLogFile=$folder/log/slurmd
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=2,batch_sched_delay=1
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc --all) RealMemory=$(($(awk '/MemTotal/ {print $2}' /proc/meminfo) / 1100)) State=UNKNOWN
PartitionName=main Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF
    slurmctld
    slurmd -N "$host"
    for _ in $(seq 60); do
        sinfo --noheader --format %T 2> /dev/null | grep -q idle && return
        sleep 1
    done
    fail "the node did not come up: see $folder/log"
}

stop() {
    local folder=$1 daemon
    for daemon in slurmd slurmctld; do
        [[ ! -e $folder/$daemon.pid ]] || kill "$(cat "$folder/$daemon.pid")" || true
    done
    [[ ! -e $conf || $(head -n 1 "$conf") != "$ours" ]] || rm "$conf"
}

"$@"
