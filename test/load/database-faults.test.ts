import { expect, test } from 'vitest';
import { databaseFault } from '../../src/database/faults.ts';

const fatalDatabaseFault = (error: unknown) => {
  const fault = databaseFault(error);
  return fault?.fatal ? fault.text : undefined;
};
const withCode = (code: string) => Object.assign(new Error('value 203.0.113.7'), { code });

test.each(['28P01', '28000', '3D000', '42501', '42P01', '42883', '3F000'])('%s is fatal', (code) => {
  expect(fatalDatabaseFault(withCode(code))).toBeTypeOf('string');
});

test.each(['57P03', '57P01', '53300', '08006', '08001', '40001', 'ECONNREFUSED', 'ENOTFOUND', 'ECONNRESET'])(
  '%s may heal',
  (code) => {
    expect(fatalDatabaseFault(withCode(code))).toBeUndefined();
  },
);

test('an error without a code may heal', () => {
  expect(fatalDatabaseFault(new Error('Connection terminated unexpectedly'))).toBeUndefined();
});

test.each([
  '28P01',
  '3D000',
  '42501',
  '53300',
  '57P03',
  '57P01',
  '25006',
  '08P01',
  'ECONNREFUSED',
  'ENOTFOUND',
  'EAI_AGAIN',
  'ETIMEDOUT',
  'ECONNRESET',
  'ENOENT',
  'EACCES',
  'DEPTH_ZERO_SELF_SIGNED_CERT',
  'CERT_HAS_EXPIRED',
  'ERR_TLS_CERT_ALTNAME_INVALID',
  'EPROTO',
  'ERR_SSL_WRONG_VERSION_NUMBER',
])('%s is one line that says where it was', (code) => {
  const { text } = databaseFault(withCode(code), { at: 'db.example:5432/logins' })!;
  expect(text).toContain('db.example:5432/logins');
  expect(text).not.toMatch(/\n|203\.0\.113\.7/);
  expect(text).not.toContain(code);
});

test('what is told holds nothing of the error', () => {
  expect(fatalDatabaseFault(withCode('42501'))).not.toContain('203.0.113.7');
});
