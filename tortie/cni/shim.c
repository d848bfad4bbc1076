/*
 * The CNI plugin binary: a messenger between the container runtime and the CNI server.
 *
 * Installed on the host as `calico` and as `calico-ipam`. It sends its name, arguments, the CNI
 * environment, standard input and an open descriptor of CNI_NETNS to the server's root-only socket,
 * runs other plugins from CNI_PATH when the server asks for one (the server lives in another mount
 * namespace and cannot), prints what it is told and exits as it is told. VERSION needs no server; it
 * answers in the version that its input names, and waits for none that does not come.
 * All logic is in the server; wire.py describes the frames.
 *
 * Every failure of its own ends in a CNI error object on standard output and exit status 1. All
 * reading and writing blocks; an alarm bounds the whole.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define WIRE_VERSION "1"
#define DEFAULT_SOCKET "/var/run/calico/cni.sock"
#define DEADLINE 110          /* seconds in all: longer than the server gives an allocation (90) */
#define VERSION_DEADLINE 2    /* seconds for the input of VERSION; whoever runs it by hand gives none */
#define MAX_BYTES (16u << 20) /* of standard input and of one frame; the server's limit too */
#define IO_FAILURE 5          /* codes of the CNI specification, section "Error" */
#define TRY_AGAIN_LATER 11

extern char **environ;

static const char *server_path;
static volatile pid_t child;               /* the plugin that runs now, 0 if none */
static char config_version[16] = "1.0.0"; /* of the error objects: the configuration's, if it names one */

static const char versions[] =
    "{\"cniVersion\":\"%s\",\"supportedVersions\":[\"0.1.0\",\"0.2.0\",\"0.3.0\",\"0.3.1\",\"0.4.0\","
    "\"1.0.0\",\"1.1.0\"]}\n";

static void print(int fd, const char *data, size_t length)
{
    while (length > 0) {
        ssize_t written = write(fd, data, length);
        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0)
            return; /* the runtime closed its end: nobody is left to be told */
        data += written;
        length -= (size_t)written;
    }
}

/* Print an error object and exit; what JSON does not allow in a string becomes '?'. */
__attribute__((noreturn, format(printf, 2, 3)))
static void fail(int code, const char *format, ...)
{
    char message[1024], out[1280];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    for (char *c = message; *c != '\0'; c++)
        if (*c == '"' || *c == '\\' || *c < ' ' || *c > '~')
            *c = '?';
    int length = snprintf(out, sizeof out,
                          "{\n    \"cniVersion\": \"%s\",\n    \"code\": %d,\n    \"msg\": \"%s\"\n}\n",
                          config_version, code, message);
    print(STDOUT_FILENO, out, (size_t)length);
    _exit(1);
}

/* The alarm. It never interrupts an allocation (only system calls block), so fail() is safe here. */
static void on_deadline(int signal_number)
{
    (void)signal_number;
    if (child > 0)
        kill(child, SIGKILL);
    fail(TRY_AGAIN_LATER, "no answer from the CNI server at %s within %d s", server_path, DEADLINE);
}

/* The value of "cniVersion", found by its looks: good enough for this program's own errors. */
static void note_config_version(const char *input, size_t length)
{
    const char *end = input + length, *c = memmem(input, length, "\"cniVersion\"", 12);
    if (c == NULL)
        return;
    for (c += 12; c < end && strchr(" :\t\r\n", *c) != NULL; c++)
        ;
    size_t digits = 0;
    if (c < end && *c++ == '"')
        while (c + digits < end && ((c[digits] >= '0' && c[digits] <= '9') || c[digits] == '.'))
            digits++;
    if (digits > 0 && digits < sizeof config_version && c + digits < end && c[digits] == '"') {
        memcpy(config_version, c, digits);
        config_version[digits] = '\0';
    }
}

/* Everything that can be read from `fd`, as a string of `*length` bytes. */
static char *read_all(int fd, size_t *length)
{
    size_t capacity = 0;
    char *data = NULL;
    for (*length = 0;;) {
        if (*length + 1 >= capacity && (data = realloc(data, capacity = capacity * 2 + 16384)) == NULL)
            fail(IO_FAILURE, "out of memory");
        ssize_t got = read(fd, data + *length, capacity - *length - 1);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0 || *length > MAX_BYTES)
            fail(IO_FAILURE, "cannot read: %s", got < 0 ? strerror(errno) : "too much input");
        if (got == 0)
            break;
        *length += (size_t)got;
    }
    data[*length] = '\0';
    return data;
}

/* --- frames: a type, a 32-bit length in network order, texts each with such a length -------------- */

static void put_number(FILE *out, size_t number)
{
    for (int shift = 24; shift >= 0; shift -= 8)
        putc((int)(number >> shift & 0xff), out);
}

static void put_text(FILE *out, const char *text, size_t length)
{
    put_number(out, length);
    fwrite(text, 1, length, out);
}

static void put_decimal(FILE *out, int number)
{
    char text[16];
    put_text(out, text, (size_t)snprintf(text, sizeof text, "%d", number));
}

static uint32_t number_at(const char *data)
{
    const unsigned char *bytes = (const unsigned char *)data;
    return (uint32_t)bytes[0] << 24 | (uint32_t)bytes[1] << 16 | (uint32_t)bytes[2] << 8 | bytes[3];
}

/* The next text of a frame, which `*frame` then starts behind; it is ended by a NUL of its own. */
static char *take_text(char **frame, size_t *left, size_t *length)
{
    if (*left < 4 || *left - 4 < number_at(*frame))
        fail(TRY_AGAIN_LATER, "the CNI server at %s sent a malformed frame", server_path);
    *length = number_at(*frame);
    char *text = strndup(*frame + 4, *length); /* texts here hold no NUL but in a plugin's input */
    if (text == NULL)
        fail(IO_FAILURE, "out of memory");
    *frame += 4 + *length;
    *left -= 4 + *length;
    return text;
}

/* Send `payload` as one frame; an open `netns` travels with its first bytes. */
static void send_frame(int server, char type, const char *payload, size_t length, int netns)
{
    char head[5] = {type, (char)(length >> 24), (char)(length >> 16), (char)(length >> 8), (char)length};
    union {
        char space[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control = {{0}};
    struct iovec part = {head, sizeof head};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    if (netns >= 0) {
        message.msg_control = control.space;
        message.msg_controllen = sizeof control.space;
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(header), &netns, sizeof(int));
    }
    ssize_t sent = sendmsg(server, &message, 0); /* five bytes go into an empty buffer as a whole */
    if (sent != (ssize_t)sizeof head)
        fail(TRY_AGAIN_LATER, "the CNI server at %s went away: %s", server_path, strerror(errno));
    print(server, payload, length); /* if it went away meanwhile, the next receive says so */
}

static void receive(int server, char *data, size_t length)
{
    while (length > 0) {
        ssize_t got = recv(server, data, length, MSG_WAITALL);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            fail(TRY_AGAIN_LATER, "the CNI server at %s went away before it answered: %s", server_path,
                 got < 0 ? strerror(errno) : "connection closed");
        data += got;
        length -= (size_t)got;
    }
}

static char receive_frame(int server, char **payload, size_t *length)
{
    char head[5];
    receive(server, head, sizeof head);
    *length = number_at(head + 1);
    if (*length > MAX_BYTES || (*payload = malloc(*length + 1)) == NULL)
        fail(TRY_AGAIN_LATER, "the CNI server at %s sent a frame of %zu bytes", server_path, *length);
    receive(server, *payload, *length);
    return head[0];
}

static int is_passed_on(const char *entry)
{
    return strncmp(entry, "CNI_", 4) == 0 || strncmp(entry, "PATH=", 5) == 0;
}

/* What the server has to know: see wire.py, Request. */
static void send_request(int server, int argc, char **argv, const char *input, size_t input_length)
{
    char *request, *slash = strrchr(argv[0], '/'), *name = slash ? slash + 1 : argv[0];
    const char *path = getenv("CNI_NETNS");
    size_t length;
    int netns = path != NULL && *path != '\0' ? open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK) : -2;
    int why = netns == -1 ? errno : 0, count = 0;
    FILE *out = open_memstream(&request, &length);
    if (out == NULL)
        fail(IO_FAILURE, "out of memory");
    put_text(out, WIRE_VERSION, strlen(WIRE_VERSION));
    put_decimal(out, why);
    put_text(out, name, strlen(name));
    put_decimal(out, argc - 1);
    for (int i = 1; i < argc; i++)
        put_text(out, argv[i], strlen(argv[i]));
    for (char **entry = environ; *entry != NULL; entry++)
        count += is_passed_on(*entry);
    put_decimal(out, count);
    for (char **entry = environ; *entry != NULL; entry++)
        if (is_passed_on(*entry))
            put_text(out, *entry, strlen(*entry));
    put_text(out, input, input_length);
    fclose(out);
    send_frame(server, 'R', request, length, netns);
    free(request);
}

/* --- other plugins ------------------------------------------------------------------------------ */

/* The program `name` in the folders of CNI_PATH, or NULL. */
static char *find_plugin(const char *name)
{
    char *folders = strdup(getenv("CNI_PATH") ? getenv("CNI_PATH") : ""), *folder, *path;
    if (*name == '\0' || strchr(name, '/') != NULL)
        return NULL;
    while ((folder = strsep(&folders, ":")) != NULL)
        if (*folder != '\0' && asprintf(&path, "%s/%s", folder, name) > 0 && access(path, X_OK) == 0)
            return path;
    return NULL;
}

/* Run one plugin as the server asks (wire.py, Execute) and report its status and output. */
static void run_plugin(int server, char *frame, size_t left)
{
    size_t length, output_length = 0, answer_length;
    char *path = find_plugin(take_text(&frame, &left, &length)), *output = "", *answer;
    int status = 0, pipes[2], in = memfd_create("stdin", MFD_CLOEXEC);
    int count = atoi(take_text(&frame, &left, &length));
    char **settings = count < 0 || (size_t)count > left ? NULL : calloc((size_t)count + 1, sizeof *settings);
    if (settings == NULL || in < 0 || pipe2(pipes, O_CLOEXEC) < 0)
        fail(IO_FAILURE, "cannot prepare to run another plugin: %s", strerror(errno));
    for (int i = 0; i < count; i++)
        settings[i] = take_text(&frame, &left, &length);
    if (left < 4)
        fail(TRY_AGAIN_LATER, "the CNI server at %s sent a malformed frame", server_path);
    print(in, frame + 4, left - 4); /* the rest is the last text, the plugin's input */
    lseek(in, 0, SEEK_SET);
    if (path != NULL && (child = fork()) == 0) {
        signal(SIGPIPE, SIG_DFL);
        dup2(in, STDIN_FILENO);
        dup2(pipes[1], STDOUT_FILENO);
        for (int i = 0; i < count; i++)
            putenv(settings[i]);
        execl(path, path, (char *)NULL);
        _exit(127);
    }
    close(pipes[1]);
    if (child > 0) {
        output = read_all(pipes[0], &output_length);
        while (waitpid(child, &status, 0) < 0 && errno == EINTR)
            ;
    }
    FILE *out = open_memstream(&answer, &answer_length);
    if (out == NULL)
        fail(IO_FAILURE, "out of memory");
    put_decimal(out, child <= 0 ? -1 : WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
    put_text(out, output, output_length);
    fclose(out);
    child = 0;
    close(in);
    close(pipes[0]);
    send_frame(server, 'D', answer, answer_length, -1);
}

/* --- the program -------------------------------------------------------------------------------- */

/* Also the alarm of tell_versions(): the input that has not come by then names no version. */
__attribute__((noreturn))
static void print_versions(int signal_number)
{
    char out[160];
    (void)signal_number;
    print(STDOUT_FILENO, out, (size_t)snprintf(out, sizeof out, versions, config_version));
    _exit(0);
}

/* VERSION: the version of the input is that of the answer (specification, "VERSION Success"). */
__attribute__((noreturn))
static void tell_versions(void)
{
    static char input[4096]; /* {"cniVersion": …} and whatever else */
    size_t length = 0;
    ssize_t got;
    strcpy(config_version, "1.1.0");
    signal(SIGALRM, print_versions);
    alarm(VERSION_DEADLINE);
    while (!isatty(STDIN_FILENO) && length < sizeof input
           && (got = read(STDIN_FILENO, input + length, sizeof input - length)) > 0)
        length += (size_t)got;
    note_config_version(input, length);
    print_versions(0);
}

static int connect_server(void)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int server = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (strlen(server_path) >= sizeof address.sun_path)
        fail(IO_FAILURE, "the path of the CNI server's socket is too long: %s", server_path);
    strcpy(address.sun_path, server_path);
    if (server < 0 || connect(server, (struct sockaddr *)&address, sizeof address) < 0)
        fail(TRY_AGAIN_LATER, "cannot reach the CNI server at %s: %s: check that calico-node runs on this node",
             server_path, strerror(errno));
    return server;
}

int main(int argc, char **argv)
{
    const char *command = getenv("CNI_COMMAND");
    char *input = "", *frame;
    size_t length = 0;
    if (argc == 1 && command != NULL && strcmp(command, "VERSION") == 0)
        tell_versions();
    server_path = getenv("TORTIE_CNI_SOCKET");
    if (server_path == NULL || *server_path == '\0')
        server_path = DEFAULT_SOCKET;
    signal(SIGPIPE, SIG_IGN);
    signal(SIGALRM, on_deadline);
    alarm(DEADLINE);
    if (command != NULL || (argc > 1 && strcmp(argv[1], "-t") == 0))
        input = read_all(STDIN_FILENO, &length);
    note_config_version(input, length);
    int server = connect_server();
    send_request(server, argc, argv, input, length);
    for (;; free(frame)) { /* the one thing that could pile up; all else is freed by the exit */
        char type = receive_frame(server, &frame, &length);
        if (type == 'O')
            print(STDOUT_FILENO, frame, length);
        else if (type == 'E')
            print(STDERR_FILENO, frame, length);
        else if (type == 'X')
            run_plugin(server, frame, length);
        else if (type == 'Q' && length == 1)
            return (unsigned char)frame[0];
        else
            fail(TRY_AGAIN_LATER, "the CNI server at %s sent an unknown frame", server_path);
    }
}
