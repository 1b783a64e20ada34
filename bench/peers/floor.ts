/**
 * The floor of the end-to-end benchmark: only receives and deletes messages, with the same SDK and settings as
 * masked-logins. Every solution that uses this SDK has to do this.
 */
import { DeleteMessageBatchCommand, ReceiveMessageCommand } from '@aws-sdk/client-sqs';
import { DELETE_SOCKETS, readPolling } from './polling.ts';

const { url, pollers, polls, deletes, poll } = readPolling();
const underWay = new Set<Promise<unknown>>();

await Promise.all(
  Array.from({ length: pollers }, async () => {
    for (;;) {
      const { Messages = [] } = await polls.send(new ReceiveMessageCommand(poll));
      if (Messages.length === 0) continue;
      while (underWay.size >= DELETE_SOCKETS) await Promise.race(underWay);
      const Entries = Messages.map(({ ReceiptHandle }, index) => ({ Id: String(index), ReceiptHandle }));
      const deletion = deletes
        .send(new DeleteMessageBatchCommand({ QueueUrl: url, Entries }))
        .finally(() => underWay.delete(deletion));
      underWay.add(deletion);
    }
  }),
);
