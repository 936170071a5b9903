#!/busybox sh
# The first process of a whole emulated machine: loads the drivers, mounts the disks by the names that QEMU gave them,
# runs the benchmark from the one called root, and turns the machine off.
B=/busybox
$B mount -t proc proc /proc
$B mount -t sysfs sys /sys
$B mount -t devtmpfs dev /dev
for driver in virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_blk virtio_console; do
    $B insmod /drivers/$driver.ko
done
named() {
    for disk in /sys/block/vd*; do
        if [ "$($B cat "$disk/serial")" = "$1" ]; then echo "/dev/${disk##*/}"; fi
    done
}
$B mount -t ext4 -o ro "$(named root)" /guest || echo "the disk 'root' cannot be mounted"
for name in dev proc sys; do $B mount --move /$name /guest/$name; done
$B mount -t tmpfs -o mode=755 tmp /guest/tmp
$B mount -t tmpfs -o mode=755 mnt /guest/mnt
for disk in /guest/sys/block/vd*; do
    name=$($B cat "$disk/serial")
    case $name in
    root) ;;
    request) $B ln -s "/dev/${disk##*/}" /guest/mnt/request ;;
    code) $B mkdir -p /guest/mnt/code/toolkit && $B mount -t ext4 -o ro "/guest/dev/${disk##*/}" /guest/mnt/code/toolkit ;;
    *) $B mkdir "/guest/mnt/$name" && $B mount -t ext4 -o ro "/guest/dev/${disk##*/}" "/guest/mnt/$name" ;;
    esac
done
# A machine that reads the same files again and again, for there is no room to keep them, would never end: what takes most
# is killed when pages that were needed within the last hundredth of a virtual second do not stay.
echo 10 >/guest/sys/kernel/mm/lru_gen/min_ttl_ms
echo y >/guest/sys/kernel/mm/lru_gen/enabled
$B ip link set lo up
$B env -i PATH=/usr/bin:/bin HOME=/tmp LC_ALL=C.UTF-8 PYTHONPATH=/mnt/code PYTHONDONTWRITEBYTECODE=1 PYTHONHASHSEED=0 \
    ORT_DISABLE_TELEMETRY=1 $B chroot /guest /python -P -m toolkit.devices.guest_runner
$B poweroff -f
