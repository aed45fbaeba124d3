# Comes before bootstrap.sh where no connection stands yet: takes the virtio-serial port that
# the first argument names as standard input and output. It holds no single quote.
name=$1; shift
for port in /sys/class/virtio-ports/*; do
  [ "$(cat "$port/name")" = "$name" ] && break
  port=
done
[ -n "$port" ] || exit 1
exec 0<>"/dev/${port##*/}" 1>&0
