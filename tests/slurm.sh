#!/usr/bin/env bash
# A SLURM of two nodes on this one machine, on loopback, for the tests marked `slurm` (docs/multi-node.md):
#   apt-get install slurm-wlm munge
#   eval "$(tests/slurm.sh up FOLDER)" && python -m pytest -m slurm; tests/slurm.sh down FOLDER
set -euo pipefail
what=$1 folder=$(mkdir -p "$2" && cd "$2" && pwd)
if [[ $what == down ]]; then
  xargs -r kill <"$folder/pids" || true
  exit 0
fi

mkdir -p "$folder"/{state,spool.n1,spool.n2}
mkdir -p -m 700 "$folder/munge"
[[ -s $folder/munge/key ]] || (umask 077 && head -c 1024 /dev/urandom >"$folder/munge/key")
cat >"$folder/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=26817
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool.%n
SlurmctldPidFile=$folder/ctld.pid
SlurmdPidFile=$folder/%n.pid
SlurmctldLogFile=$folder/ctld.log
SlurmdLogFile=$folder/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
KillWait=5
JobRequeue=1
NodeName=n1 NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=27001 CPUs=2 RealMemory=6000
NodeName=n2 NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=27002 CPUs=2 RealMemory=6000
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
CONF

export SLURM_CONF=$folder/slurm.conf
: >"$folder/pids"
daemon() {
  setsid "$@" >>"$folder/daemons.log" 2>&1 </dev/null &
  echo $! >>"$folder/pids"
}
daemon munged --foreground --force --key-file="$folder/munge/key" --socket="$folder/munge/socket" \
  --pid-file="$folder/munge/pid" --log-file="$folder/munge/log" --seed-file="$folder/munge/seed"
sleep 1
daemon slurmctld -D
daemon slurmd -D -N n1
daemon slurmd -D -N n2
for _ in $(seq 30); do
  [[ $(sinfo --noheader --Node --format=%t 2>/dev/null | grep -c idle) == 2 ]] && break
  sleep 1
done
sinfo >&2
echo "export SLURM_CONF=$SLURM_CONF"
