// A function on plain Node.js: it polls the Runtime API, and does on SIGTERM what most functions do. It keeps one
// connection, through which the test sees what it does and when.
import http from "node:http";
import net from "node:net";

const api = `http://${process.env.AWS_LAMBDA_RUNTIME_API}`;
const agent = new http.Agent({ keepAlive: true });

function call(method, path, headers = {}, body = "") {
  return new Promise((resolve, reject) => {
    const request = http.request(`${api}${path}`, { method, agent, headers }, (response) => {
      const parts = [];
      response.on("data", (part) => parts.push(part));
      response.on("end", () => resolve({ headers: response.headers, body: Buffer.concat(parts).toString() }));
      response.on("error", reject);
    });
    request.on("error", reject);
    request.end(body);
  });
}

const [host, port] = process.env.SERVER.split(":");
const connection = net.connect({ host, port });
connection.write("hello\n");
setInterval(() => connection.write("tick\n"), 20);

process.on("SIGTERM", () => connection.end("bye\n", () => process.exit(0)));

if (process.env.REGISTER) {
  const registered = await call("POST", "/2020-01-01/extension/register", { "Lambda-Extension-Name": "node" }, '{"events":[]}');
  const identifier = registered.headers["lambda-extension-identifier"];
  // Never answered; what fails here has ended the function already.
  call("GET", "/2020-01-01/extension/event/next", { "Lambda-Extension-Identifier": identifier }).catch(() => {});
}

for (;;) {
  const event = await call("GET", "/2018-06-01/runtime/invocation/next");
  const id = event.headers["lambda-runtime-aws-request-id"];
  connection.write("query\n");
  await call("POST", `/2018-06-01/runtime/invocation/${id}/response`, {}, event.body);
}
