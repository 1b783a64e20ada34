/** Odd bodies through the whole pipeline: SQS, loader, worker. */
import fc from 'fast-check';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { toUuid } from '../../src/queue/message-id.ts';
import { readCorpus } from '../corpus/read.ts';
import { startPipeline, type Pipeline } from '../support/pipeline.ts';
import { anyBody } from './odd-bodies.ts';
import { expectedEnd } from './oracle.ts';
import { endsOf } from './outcomes.ts';

/** TEST_BODIES asks for more of them: a good dozen for each. */
const COUNT = 12 * Number(process.env['TEST_BODIES'] ?? 25);

/** SQS refuses other characters, and a body that is empty; the emulator refuses those beyond the first plane, too. */
const SQS_TAKES = /^[\t\n\r\u{20}-\u{d7ff}\u{e000}-\u{fffd}]+$/u;

let pipeline: Pipeline;
beforeAll(async () => {
  pipeline = await startPipeline();
});
afterAll(() => pipeline.stop());

test('whatever SQS takes, each message ends in the one place where it belongs, and the queue is empty', async () => {
  const decoder = new TextDecoder();
  const corpus = readCorpus().map(({ text }) => decoder.decode(text));
  const arbitrary = fc.sample(anyBody, COUNT).map((body) => decoder.decode(Buffer.from(body as string)));
  const bodies = [...corpus, ...arbitrary].filter((body) => SQS_TAKES.test(body) && body.length < 100_000);
  expect(bodies.length).toBeGreaterThan(COUNT / 2);
  const ids = await pipeline.send(bodies);
  expect(ids).toHaveLength(bodies.length);

  expect(await pipeline.run('load', [], { SQS_WAIT_TIME_SECONDS: '1' }).ended).toBe(0);
  expect(await pipeline.run('worker', ['--once']).ended).toBe(0);

  const messages = ids.map((id) => ({ id: toUuid(id) }));
  const ends = await endsOf(pipeline, messages);
  const wrong = bodies.filter((body, index) => {
    const end = ends.get(messages[index]!.id);
    return end !== (expectedEnd(body) ?? end);
  });
  expect(wrong).toEqual([]);
  const status = pipeline.run('status', ['--json']);
  await status.ended;
  expect(JSON.parse(status.output()).queue).toMatchObject({ visible: 0, inFlight: 0 });
});
