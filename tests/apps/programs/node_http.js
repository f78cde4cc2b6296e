// HTTP server and client in one process, then children, workers and a cluster. Prints what was seen as one JSON line.
"use strict";
const cluster = require("cluster");
const crypto = require("crypto");
const http = require("http");
const net = require("net");
const fs = require("fs");
const path = require("path");
const { execFileSync, spawn } = require("child_process");
const { Worker } = require("worker_threads");

const sha = (data) => crypto.createHash("sha256").update(data).digest("hex").slice(0, 16);

if (cluster.isWorker) {
  http.createServer((request, response) => response.end("from a cluster worker")).listen(0, "127.0.0.1", function () {
    process.send(this.address().port);
  });
} else {
  main().then((seen) => { console.log(JSON.stringify(seen)); process.exit(0); },
              (error) => { console.log(error.stack); process.exit(1); });
}

function get(port, where, agent) {
  return new Promise((resolve, reject) => {
    http.get({ port, host: "127.0.0.1", path: where, agent }, (response) => {
      const parts = [];
      response.on("data", (part) => parts.push(part));
      response.on("end", () => resolve(Buffer.concat(parts)));
    }).on("error", reject);
  });
}

async function main() {
  const seen = {};
  const file = path.join(process.env.TMPDIR, "node.bin");
  fs.writeFileSync(file, Buffer.alloc(5_000_000, "node and its library"));
  const server = http.createServer((request, response) => {
    if (request.method === "POST") request.pipe(response);
    else if (request.url === "/file") fs.createReadStream(file).pipe(response);
    else response.end("answer to " + request.url);
  });
  await new Promise((done) => server.listen(0, "127.0.0.1", done));
  const port = server.address().port;

  seen.file = sha(await get(port, "/file"));
  const agent = new http.Agent({ keepAlive: true, maxSockets: 8 });
  const answers = await Promise.all(Array.from({ length: 200 }, (_, i) => get(port, "/" + i, agent)));
  seen.requests = sha(Buffer.concat(answers));
  agent.destroy();
  seen.fetch = sha(Buffer.from(await (await fetch(`http://127.0.0.1:${port}/file`)).arrayBuffer()));
  seen.post = sha(Buffer.from(await (await fetch(`http://127.0.0.1:${port}/`,
    { method: "POST", body: "p".repeat(300_000) })).arrayBuffer()));
  seen.refused = await new Promise((done) => net.connect(1, "127.0.0.1").on("error", (error) => done(error.code)));
  seen.aborted = await new Promise((done) => {
    const request = http.get({ port, host: "127.0.0.1", path: "/file" }, (response) => {
      response.once("data", () => request.destroy());
      response.on("error", (error) => done(error.code));
    });
    request.on("error", () => {});
  });
  seen.child = sha(execFileSync("sh", ["-c", "head -c 200000 /dev/zero; exit 0"]));
  seen.pipes = await new Promise((done) => {
    const child = spawn("cat");
    let size = 0;
    child.stdout.on("data", (data) => { size += data.length; });
    child.on("close", (status) => done([size, status]));
    child.stdin.end("y".repeat(1_000_000));
  });
  seen.worker = await new Promise((done) => {
    new Worker("require('worker_threads').parentPort.postMessage(require('fs').readFileSync(process.env.TMPDIR + " +
      "'/node.bin').length)", { eval: true }).on("message", done);
  });
  const local = path.join(process.env.TMPDIR, "node.sock");
  seen.unix = await new Promise((done) => {
    const echo = net.createServer((socket) => socket.pipe(socket)).listen(local, () => {
      const client = net.connect(local, () => client.end("over a unix socket"));
      let text = "";
      client.on("data", (data) => { text += data; });
      client.on("close", () => { echo.close(); done(text); });
    });
  });
  seen.cluster = [];
  for (let i = 0; i < 2; i++) {
    const worker = cluster.fork();
    const workerPort = await new Promise((done) => worker.once("message", done));
    seen.cluster.push((await get(workerPort, "/")).toString());
    seen.cluster.push(await new Promise((done) => { worker.once("exit", done); worker.kill("SIGKILL"); }));
  }
  server.close();
  return seen;
}
