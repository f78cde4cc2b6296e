import com.sun.net.httpserver.HttpServer;
import java.io.InputStream;
import java.net.InetSocketAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.ByteBuffer;
import java.nio.channels.Pipe;
import java.nio.channels.SelectionKey;
import java.nio.channels.Selector;
import java.nio.channels.ServerSocketChannel;
import java.nio.channels.SocketChannel;
import java.security.MessageDigest;
import java.util.ArrayList;
import java.util.HexFormat;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.Executors;

/** The JDK's own HTTP server and client, a selector, blocking sockets, and a child process. Prints one line for each. */
public class HttpCheck {
    static String sha(byte[] data) throws Exception {
        return HexFormat.of().formatHex(MessageDigest.getInstance("SHA-256").digest(data)).substring(0, 16);
    }

    public static void main(String[] args) throws Exception {
        byte[] body = new byte[3_000_000];
        for (int i = 0; i < body.length; i++) body[i] = (byte) (i * 31 >> 3);
        var pool = Executors.newFixedThreadPool(8);
        HttpServer server = HttpServer.create(new InetSocketAddress("127.0.0.1", 0), 0);
        server.setExecutor(pool);
        server.createContext("/big", exchange -> {
            exchange.sendResponseHeaders(200, body.length);
            try (var out = exchange.getResponseBody()) { out.write(body); }
        });
        server.createContext("/echo", exchange -> {
            byte[] data = exchange.getRequestBody().readAllBytes();
            exchange.sendResponseHeaders(200, data.length);
            try (var out = exchange.getResponseBody()) { out.write(data); }
        });
        server.start();
        String base = "http://127.0.0.1:" + server.getAddress().getPort();

        HttpClient client = HttpClient.newHttpClient();
        var big = client.send(HttpRequest.newBuilder(URI.create(base + "/big")).build(), HttpResponse.BodyHandlers.ofByteArray());
        System.out.println("big " + big.statusCode() + " " + sha(big.body()));
        List<CompletableFuture<String>> answers = new ArrayList<>();
        for (int i = 0; i < 200; i++)
            answers.add(client.sendAsync(HttpRequest.newBuilder(URI.create(base + "/echo"))
                .POST(HttpRequest.BodyPublishers.ofString("request " + i)).build(), HttpResponse.BodyHandlers.ofString())
                .thenApply(HttpResponse::body));
        StringBuilder all = new StringBuilder();
        for (var answer : answers) all.append(answer.get());
        System.out.println("echoes " + sha(all.toString().getBytes()));
        System.out.println("missing " + client.send(HttpRequest.newBuilder(URI.create(base + "/none")).build(),
            HttpResponse.BodyHandlers.discarding()).statusCode());

        System.out.println("selector " + selectorEcho());
        System.out.println("close while accepting " + closeWhileAccepting());
        Process child = new ProcessBuilder("sh", "-c", "cat; exit 3").start();
        try (var in = child.getOutputStream()) { in.write(new byte[100_000]); }
        byte[] back;
        try (InputStream out = child.getInputStream()) { back = out.readAllBytes(); }
        System.out.println("child " + back.length + " " + child.waitFor());
        server.stop(0);
        pool.shutdown();
    }

    static int selectorEcho() throws Exception {
        int echoed = 0;
        try (Selector selector = Selector.open(); ServerSocketChannel listener = ServerSocketChannel.open()) {
            listener.bind(new InetSocketAddress("127.0.0.1", 0)).configureBlocking(false);
            listener.register(selector, SelectionKey.OP_ACCEPT);
            Pipe pipe = Pipe.open();
            pipe.source().configureBlocking(false);
            pipe.source().register(selector, SelectionKey.OP_READ);
            pipe.sink().write(ByteBuffer.wrap(new byte[10]));
            SocketChannel client = SocketChannel.open(listener.getLocalAddress());
            client.write(ByteBuffer.wrap(new byte[1000]));
            ByteBuffer buffer = ByteBuffer.allocate(4096);
            while (echoed < 1010) {
                selector.select(5000);
                for (SelectionKey key : selector.selectedKeys()) {
                    if (key.isAcceptable()) {
                        SocketChannel peer = listener.accept();
                        peer.configureBlocking(false).register(selector, SelectionKey.OP_READ);
                    } else if (key.isReadable()) {
                        buffer.clear();
                        echoed += ((java.nio.channels.ReadableByteChannel) key.channel()).read(buffer);
                    }
                }
                selector.selectedKeys().clear();
            }
            client.close();
        }
        return echoed;
    }

    static String closeWhileAccepting() throws Exception {
        ServerSocket listener = new ServerSocket(0);
        CompletableFuture<String> end = CompletableFuture.supplyAsync(() -> {
            try (Socket socket = listener.accept()) {
                return "accepted";
            } catch (Exception error) {
                return error.getMessage();
            }
        });
        Thread.sleep(200);
        listener.close();
        return end.get();
    }
}
