import fc from 'fast-check';
import { expect, test } from 'vitest';
import { toUuid } from '../../src/queue/message-id.ts';

const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/;

test('a UUID stays what it is, in lower case', () => {
  expect(toUuid('5FEA7756-0EA4-451A-A703-A558B933E274')).toBe('5fea7756-0ea4-451a-a703-a558b933e274');
});

test('anything else becomes a UUIDv8, the same one each time', () => {
  const id = toUuid('msg-0001');
  expect(id).toMatch(UUID);
  expect(id[14]).toBe('8');
  expect('89ab').toContain(id[19]);
  expect(toUuid('msg-0001')).toBe(id);
});

test('different ids become different UUIDs, whatever is in them', () => {
  const ids = fc.uniqueArray(fc.string({ unit: 'binary' }), { minLength: 2 });
  fc.assert(
    fc.property(ids, (different) => {
      const mapped = different.map(toUuid);
      expect(mapped.filter((id) => !UUID.test(id))).toEqual([]);
      expect(new Set(mapped).size).toBe(different.length);
    }),
  );
});
