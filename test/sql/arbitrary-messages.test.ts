/** Sends arbitrary bodies through the whole pipeline: SQS, loader, worker. */
import fc from 'fast-check';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { toUuid } from '../../src/queue/message-id.ts';
import { readCorpus } from '../corpus/read.ts';
import { startPipeline, type Pipeline } from '../support/pipeline.ts';
import { anyBody } from './odd-bodies.ts';
import { expectedResult } from './oracle.ts';
import { resultsOf } from './outcomes.ts';

/** Number of bodies: twelve for each unit of TEST_BODIES. */
const COUNT = 12 * Number(process.env['TEST_BODIES'] ?? 25);

/**
 * SQS rejects other characters and empty bodies. The emulator also rejects characters outside the first
 * plane.
 */
const SQS_ACCEPTS = /^[\t\n\r\u{20}-\u{d7ff}\u{e000}-\u{fffd}]+$/u;

let pipeline: Pipeline;
beforeAll(async () => {
  pipeline = await startPipeline();
});
afterAll(() => pipeline.stop());

test('each message that SQS accepts is loaded or quarantined, and the queue is empty afterwards', async () => {
  const decoder = new TextDecoder();
  const corpus = readCorpus().map(({ text }) => decoder.decode(text));
  const arbitrary = fc.sample(anyBody, COUNT).map((body) => decoder.decode(Buffer.from(body as string)));
  const bodies = [...corpus, ...arbitrary].filter((body) => SQS_ACCEPTS.test(body) && body.length < 100_000);
  expect(bodies.length).toBeGreaterThan(COUNT / 2);
  const ids = await pipeline.send(bodies);
  expect(ids).toHaveLength(bodies.length);

  expect(await pipeline.run('load', [], { SQS_WAIT_TIME_SECONDS: '1' }).ended).toBe(0);
  expect(await pipeline.run('worker', ['--once']).ended).toBe(0);

  const messages = ids.map((id) => ({ id: toUuid(id) }));
  const results = await resultsOf(pipeline, messages);
  const wrong = bodies.filter((body, index) => {
    const result = results.get(messages[index]!.id);
    return result !== (expectedResult(body) ?? result);
  });
  expect(wrong).toEqual([]);
  const status = pipeline.run('status', ['--json']);
  await status.ended;
  expect(JSON.parse(status.output()).queue).toMatchObject({ visible: 0, inFlight: 0 });
});
