# Two hosts, as namespaces joined by a cable, until the input ends. Prints the process that each is entered by.
#     unshare --user --map-root-user --net --uts sh two_hosts.sh
set -e
# in the background, input is not what is given
unshare --net --uts sleep infinity &
second=$!
trap 'kill $second' EXIT
until [ "$(readlink /proc/$second/ns/uts)" != "$(readlink /proc/$$/ns/uts)" ] && [ "$(readlink /proc/$second/ns/net)" != "$(readlink /proc/$$/ns/net)" ]; do
    kill -0 $second
    sleep 0.1
done
second_host() {
    nsenter --target $second --net --uts "$@"
}

ip link add cable type veth peer name cable netns $second
hostname host-a
second_host hostname host-b
ip address add 10.77.0.1/24 dev cable
second_host ip address add 10.77.0.2/24 dev cable
for device in lo cable; do
    ip link set $device up
    second_host ip link set $device up
done
echo $$ $second
cat
