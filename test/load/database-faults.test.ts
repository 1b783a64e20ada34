import { expect, test } from 'vitest';
import { fatalDatabaseFault } from '../../src/database/faults.ts';

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

test('what is told holds nothing of the error', () => {
  expect(fatalDatabaseFault(withCode('42501'))).not.toContain('203.0.113.7');
});
