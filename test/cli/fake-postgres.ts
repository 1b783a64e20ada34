import { createServer, type AddressInfo } from 'node:net';

/** A message of Postgres's protocol. */
function message(type: string, ...parts: (string | Buffer)[]): Buffer {
  const body = Buffer.concat(
    parts.map((part) => (typeof part === 'string' ? Buffer.from(`${part}\0`) : part)),
  );
  const head = Buffer.alloc(5);
  head.write(type);
  head.writeInt32BE(body.length + 4, 1);
  return Buffer.concat([head, body]);
}

function numbers(...given: [bytes: 2 | 4, value: number][]): Buffer {
  return Buffer.concat(
    given.map(([bytes, value]) => {
      const buffer = Buffer.alloc(bytes);
      buffer.writeIntBE(value, 0, bytes);
      return buffer;
    }),
  );
}

const READY = message('Z', Buffer.from('I'));

/** One row of one number, as the answer to a simple query. */
function answer(name: string, value: number): Buffer {
  const column = Buffer.concat([
    numbers([2, 1]),
    Buffer.from(`${name}\0`),
    numbers([4, 0], [2, 0], [4, 23], [2, 4], [4, -1], [2, 0]),
  ]);
  const digits = Buffer.from(String(value));
  return Buffer.concat([
    message('T', column),
    message('D', numbers([2, 1], [4, digits.length]), digits),
    message('C', 'SELECT 1'),
    READY,
  ]);
}

/**
 * A server that lets everybody in, tells each connection the process id of its own, and answers every other simple query
 * with its version: one that is too old.
 */
export async function startFakePostgres(version: number): Promise<{ url: string; stop: () => void }> {
  let connections = 0;
  const server = createServer((socket) => {
    const pid = (connections += 1);
    socket.on('error', () => {});
    socket.once('data', () => {
      socket.write(
        Buffer.concat([message('R', numbers([4, 0])), message('S', 'server_version', '15.4'), READY]),
      );
      socket.on('data', (data) => {
        if (data.toString('latin1', 0, 1) === 'X') socket.end();
        else socket.write(data.includes('pg_backend_pid') ? answer('pid', pid) : answer('version', version));
      });
    });
  });
  await new Promise<void>((resolve) => {
    server.listen(0, '127.0.0.1', resolve);
  });
  const { port } = server.address() as AddressInfo;
  return { url: `postgres://somebody:opensesame@127.0.0.1:${port}/somewhere`, stop: () => server.close() };
}
