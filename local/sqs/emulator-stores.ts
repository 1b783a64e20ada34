import type { BuildAppOptions } from 'fauxqs';

type Stores = NonNullable<BuildAppOptions['stores']>;

/** The used part of fauxqs's `PersistenceManager`, which the package does not export. */
interface Persistence {
  db: { exec(sql: string): void; prepare(sql: string): { run(...values: unknown[]): unknown } };
  updateMessageReady(messageId: string): void;
  loadSqsAndSns(sqs: Stores['sqsStore'], sns: Stores['snsStore']): void;
  close(): void;
}

/**
 * The emulator's stores: in memory, or written through to SQLite in a directory.
 *
 * They are connected here, because `startFauxqs({ dataDir })` of fauxqs 2.4.1 loses messages: setting a message's
 * visibility to 0 writes NULL into a NOT NULL column. At that moment, the message is neither in flight nor in the
 * queue.
 */
export async function loadStores(dataDirectory: string | undefined): Promise<Stores & { close(): void }> {
  const { SqsStore } = (await internal('sqs/sqsStore.js')) as { SqsStore: new () => Stores['sqsStore'] };
  const { SnsStore } = (await internal('sns/snsStore.js')) as { SnsStore: new () => Stores['snsStore'] };
  const { S3Store } = (await internal('s3/s3Store.js')) as { S3Store: new () => Stores['s3Store'] };
  const stores = { sqsStore: new SqsStore(), snsStore: new SnsStore(), s3Store: new S3Store() };
  if (dataDirectory === undefined) return { ...stores, close() {} };

  const { PersistenceManager } = (await internal('persistence.js')) as {
    PersistenceManager: new (directory: string) => Persistence;
  };
  const persistence = new PersistenceManager(dataDirectory);
  // Messages survive a crash of this process. To survive a power failure would cost an fsync for each message.
  persistence.db.exec('pragma synchronous = off');
  const makeReady = persistence.db.prepare(
    'update sqs_messages set receipt_handle = null, visibility_deadline = null where message_id = ?',
  );
  persistence.updateMessageReady = (messageId) => {
    makeReady.run(messageId);
  };
  // Load before connecting the persistence: creating a queue would write it, and delete its messages.
  persistence.loadSqsAndSns(stores.sqsStore, stores.snsStore);
  Object.assign(stores.sqsStore, { persistence });
  for (const queue of stores.sqsStore.allQueues()) Object.assign(queue, { persistence });
  return { ...stores, close: () => persistence.close() };
}

/** A module that the package does not export. Its version is pinned, and the tests of the emulator use all of this. */
function internal(file: string): Promise<unknown> {
  return import(new URL(file, import.meta.resolve('fauxqs')).href);
}
