import { expect, test } from 'vitest';
import { Grouping } from '../src/grouping.ts';

const groupsOf = (sizes: number[]) => {
  const groups = new Grouping<number>({ items: 3, bytes: 10 }, (size) => size);
  return [...sizes.flatMap((size) => groups.add(size)), ...groups.rest()];
};

test('a group has no more items than it may', () => {
  expect(groupsOf([1, 1, 1, 1])).toEqual([[1, 1, 1], [1]]);
});

test('a group has no more bytes than it may, and may have as many', () => {
  expect(groupsOf([5, 5, 1, 9, 1])).toEqual([[5, 5], [1, 9], [1]]);
});

test('an item that is too large is a group of its own', () => {
  expect(groupsOf([11, 1, 50, 2])).toEqual([[11], [1], [50], [2]]);
});

test('without items there is no group', () => {
  expect(groupsOf([])).toEqual([]);
});
