/* A minimal data plane in C: TUN super-packets onto a Unix stream and back.
 *
 *     pump copy|aead INTERFACE listen|dial PATH      a TUN with super-packets, with or without ChaCha20-Poly1305
 *     pump frames    INTERFACE dial PATH             a TAP with plain Ethernet frames, as gvproxy's QEMU listener takes them
 *
 * Its keys are fixed and public, and its counters are not checked: use it for measurements only.
 * It prints "ready" once its interface exists, and ends with its stream.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <openssl/evp.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define BATCH (256 * 1024)           /* bytes per turn, as in wgvsock/tunnel/outbound.py */
#define LONGEST 65600                /* bytes of the longest frame, as in wgvsock/framing.py */
#define BUFFER (512 * 1024)          /* bytes of a stream buffer, as in wgvsock/transports/link.py */
#define HEADER 16                    /* bytes in front of a ciphertext: a transport data header's */
#define TAG 16

static int cipher;
static EVP_CIPHER_CTX *sealing, *opening;
static uint8_t out[BUFFER], in[BATCH + LONGEST], packet[LONGEST];

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static int open_interface(const char *name, int ethernet)
{
    int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC), size = 10, little = 1;
    struct ifreq request = {.ifr_flags = IFF_NO_PI | (ethernet ? IFF_TAP : IFF_TUN | IFF_VNET_HDR)};
    if (fd < 0)
        die("/dev/net/tun");
    strncpy(request.ifr_name, name, IFNAMSIZ - 1);
    if (ioctl(fd, TUNSETIFF, &request))
        die(name);
    if (ethernet)
        return fd;
    unsigned tcp = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN, udp = 0x20 | 0x40; /* USO: Linux 6.2 */
    if (ioctl(fd, TUNSETVNETHDRSZ, &size) || ioctl(fd, TUNSETVNETLE, &little))
        die("TUNSETVNETHDRSZ");
    if (ioctl(fd, TUNSETOFFLOAD, tcp | udp) && ioctl(fd, TUNSETOFFLOAD, tcp))
        die("TUNSETOFFLOAD");
    return fd;
}

static int open_stream(int listening, const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    strncpy(address.sun_path, path, sizeof address.sun_path - 1);
    if (listening) {
        if (bind(fd, (struct sockaddr *)&address, sizeof address) || listen(fd, 1))
            die(path);
        puts("ready");
        fflush(stdout);
        int accepted = accept(fd, NULL, NULL);
        close(fd);
        fd = accepted;
    } else if (connect(fd, (struct sockaddr *)&address, sizeof address))
        die(path);
    else {
        puts("ready");
        fflush(stdout);
    }
    if (fd < 0 || fcntl(fd, F_SETFL, O_NONBLOCK))
        die("stream");
    return fd;
}

static EVP_CIPHER_CTX *context(int seals, uint8_t sender)
{
    uint8_t key[32] = {sender};
    EVP_CIPHER_CTX *made = EVP_CIPHER_CTX_new();
    if (!made || !EVP_CipherInit_ex(made, EVP_chacha20_poly1305(), NULL, key, NULL, seals))
        exit(1);
    return made;
}

/* Writes one packet after its frame header at `frame`. Returns the frame's length. */
static size_t seal(uint8_t *frame, size_t length, uint64_t counter)
{
    size_t size = length;
    if (cipher) {
        uint8_t nonce[12] = {0}, *body = frame + 4 + HEADER;
        int written;
        size = (length + 15) / 16 * 16;
        memset(packet + length, 0, size - length);
        memcpy(nonce + 4, &counter, 8);
        memset(frame + 4, 4, 8);
        memcpy(frame + 12, &counter, 8);
        if (!EVP_EncryptInit_ex(sealing, NULL, NULL, NULL, nonce) ||
            !EVP_EncryptUpdate(sealing, body, &written, packet, (int)size) ||
            !EVP_EncryptFinal_ex(sealing, body + written, &written) ||
            !EVP_CIPHER_CTX_ctrl(sealing, EVP_CTRL_AEAD_GET_TAG, TAG, body + size))
            exit(1);
        size += HEADER + TAG;
    }
    frame[0] = size >> 24, frame[1] = size >> 16, frame[2] = size >> 8, frame[3] = size;
    return size + 4;
}

/* Opens one frame's payload as a packet at `*plain`. Returns its length, or 0 if it is refused. */
static size_t opened(uint8_t *payload, size_t size, uint8_t **plain)
{
    *plain = payload;
    if (!cipher)
        return size;
    uint8_t nonce[12] = {0};
    int written;
    if (size < HEADER + TAG)
        return 0;
    memcpy(nonce + 4, payload + 8, 8);
    size -= HEADER + TAG;
    if (!EVP_DecryptInit_ex(opening, NULL, NULL, NULL, nonce) ||
        !EVP_DecryptUpdate(opening, packet, &written, payload + HEADER, (int)size) ||
        !EVP_CIPHER_CTX_ctrl(opening, EVP_CTRL_AEAD_SET_TAG, TAG, payload + HEADER + size) ||
        EVP_DecryptFinal_ex(opening, packet + written, &written) <= 0)
        return 0;
    *plain = packet;
    /* Trim the padding, according to the IP header. */
    size_t length = packet[10] >> 4 == 4 ? packet[12] << 8 | packet[13] : 40 + (packet[14] << 8 | packet[15]);
    return length + 10 <= size ? length + 10 : 0;
}

int main(int count, char **words)
{
    if (count != 5)
        return 2;
    int ethernet = !strcmp(words[1], "frames"), listening = !strcmp(words[3], "listen");
    cipher = !strcmp(words[1], "aead");
    sealing = context(1, listening);
    opening = context(0, !listening);
    int tun = open_interface(words[2], ethernet), stream = open_stream(listening, words[4]);
    size_t start = 0, end = 0, held = 0;
    uint64_t counter = 0;
    for (;;) {
        struct pollfd wait[2] = {
            {.fd = tun, .events = end ? 0 : POLLIN},
            {.fd = stream, .events = end ? POLLIN | POLLOUT : POLLIN},
        };
        if (poll(wait, 2, -1) < 0 && errno != EINTR)
            die("poll");
        if (wait[1].revents & (POLLIN | POLLHUP)) {
            ssize_t got = recv(stream, in + held, sizeof in - held, 0);
            if (!got || (got < 0 && errno != EAGAIN))
                return 0;
            if (got > 0)
                held += got;
            size_t at = 0;
            while (held - at >= 4) {
                size_t size = (size_t)in[at] << 24 | in[at + 1] << 16 | in[at + 2] << 8 | in[at + 3];
                if (!size || size > LONGEST)
                    return 1;
                if (held - at - 4 < size)
                    break;
                uint8_t *plain;
                size_t length = opened(in + at + 4, size, &plain);
                if (length && write(tun, plain, length) < 0 && errno != EAGAIN && errno != EIO && errno != EINVAL)
                    die("write");
                at += 4 + size;
            }
            memmove(in, in + at, held - at);
            held -= at;
        }
        if (!end && wait[0].revents & POLLIN) {
            while (end < BATCH) {
                uint8_t *to = cipher ? packet : out + end + 4;
                ssize_t got = read(tun, to, LONGEST - 64);
                if (got < 0 && errno != EAGAIN)
                    die("read");
                if (got <= 0)
                    break;
                end += seal(out + end, got, counter++);
            }
        }
        while (start < end) {
            ssize_t sent = send(stream, out + start, end - start, MSG_NOSIGNAL);
            if (sent < 0 && errno != EAGAIN)
                return 0;
            if (sent < 0)
                break;
            start += sent;
        }
        if (start == end)
            start = end = 0;
    }
}
