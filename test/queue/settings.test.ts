import { expect, test } from 'vitest';
import { readSettings, requireQueue } from '../../src/config.ts';
import { SettingError } from '../../src/errors.ts';

const queueOf = (variables: Record<string, string>) => requireQueue(readSettings({ ...variables }));

test.each([
  ['https://sqs.eu-west-1.amazonaws.com/123456789012/logins', 'eu-west-1'],
  ['https://sqs.us-gov-west-1.amazonaws.com/123456789012/logins', 'us-gov-west-1'],
  ['https://sqs.cn-north-1.amazonaws.com.cn/123456789012/logins', 'cn-north-1'],
  ['https://sqs-fips.us-east-2.amazonaws.com/123456789012/logins', 'us-east-2'],
  ['https://sqs.eu-west-1.api.aws/123456789012/logins', 'eu-west-1'],
  ['https://eu-west-1.queue.amazonaws.com/123456789012/logins', 'eu-west-1'],
  ['https://queue.amazonaws.com/123456789012/logins', 'us-east-1'],
  ['https://vpce-0a1b-2c3d.sqs.eu-west-1.vpce.amazonaws.com/123456789012/logins', 'eu-west-1'],
  ['https://vpce-0a1b-2c3d-eu-west-1a.sqs.eu-west-1.vpce.amazonaws.com/1/logins', 'eu-west-1'],
])('the region is taken from %s, and another one in the environment is refused', (url, region) => {
  expect(queueOf({ SQS_QUEUE_URL: url }).region).toBe(region);
  expect(queueOf({ SQS_QUEUE_URL: url, AWS_REGION: region }).region).toBe(region);
  for (const variable of ['AWS_REGION', 'AWS_DEFAULT_REGION']) {
    const other = () => queueOf({ SQS_QUEUE_URL: url, [variable]: 'ap-southeast-2' });
    expect(other).toThrow(SettingError);
    expect(other).toThrow(new RegExp(`${variable}.*ap-southeast-2.*${region}`));
  }
});

test.each([
  'http://sqs.us-east-1.localhost.localstack.cloud:4566/000000000000/logins',
  'http://sqs:4566/0/logins',
])('an emulator at %s takes whatever region the environment names', (url) => {
  expect(queueOf({ SQS_QUEUE_URL: url, AWS_REGION: 'eu-west-1' }).region).toBe('eu-west-1');
});

test.each(['.fifo', '.fifo/', '.fifo//', '.fifo?x=1'])('a queue whose URL ends in %s is refused', (end) => {
  expect(() =>
    queueOf({ SQS_QUEUE_URL: `https://sqs.eu-west-1.amazonaws.com/123456789012/logins${end}` }),
  ).toThrow(SettingError);
});

test.each(['https://sqs.eu-west-1.amazonaws.com', 'https://sqs.eu-west-1.amazonaws.com/'])(
  'an address without a queue is refused: %s',
  (url) => {
    expect(() => queueOf({ SQS_QUEUE_URL: url })).toThrow(SettingError);
  },
);
